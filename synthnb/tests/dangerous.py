"""A synth that fails on demand, in a module that loads fast: it is started again and again."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from synthnb.synths.dexed import Dexed


class Dangerous:
    """Dexed, in a process that dies, hangs or leaks where a file in the working folder says so."""

    def __init__(self, marks: str):
        self.synth, self.marks, self.leaked = Dexed(), Path(marks), []

    def render(self, patch, note, seconds):
        """Patches are told by their algorithm; `once` is gone when it has struck."""
        if self._struck("segfault", patch):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._struck("hang", patch):
            time.sleep(600)
        if (self.marks / "leak").exists():
            self.leaked.append(np.ones(4_000_000))  # 32 MB
        return self.synth.render(patch, note, seconds)

    def _struck(self, fault: str, patch) -> bool:
        once, always = self.marks / f"{fault}-once", self.marks / f"{fault}-always"
        if once.exists() and patch["algorithm"] == once.read_text():
            once.unlink()
            return True
        return always.exists() and patch["algorithm"] == always.read_text()
