"""An object in a process of its own: what crashes or hangs there is an error message here.

A plugin is foreign native code. It may take its process down, never return, insist on the main thread or be unable
to live through a fork; here it has a Python of its own, which starts with the first call and again after a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

import psutil

from synthnb.synths import SynthCrash

ROOT = Path(__file__).parents[2]  # where `synthnb` is found


class Host:
    """Calls methods of an object that lives in another process.

    A process that leaks is ended when it holds more than `memory` bytes; the next call starts it again.

    Args:
        target: `package.module:Class` of the object; arguments and results must pickle.
        arguments: it is made with these, again after a crash.
        name: what error messages call it.
    """

    memory = 4 << 30

    def __init__(self, target: str, *arguments, name: str):
        self.target, self.arguments, self.name = target, arguments, name
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def call(self, method: str, *arguments, timeout: float = 60.0):
        """What the object's method returns. Raises what that raises; `SynthCrash` on a crash or after `timeout` s."""
        with self._lock:
            if self._process is None:
                self._start()
                self._ask("__init__", self.arguments, 120.0)
            result = self._ask(method, arguments, timeout)
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end right after its answer
                if psutil.Process(self._process.pid).memory_info().rss > self.memory:
                    self.close()
            return result

    @property
    def pid(self) -> int | None:
        """The other process; None before the first call and after a crash."""
        return self._process and self._process.pid

    def close(self) -> None:
        """End the other process, whatever it is doing."""
        if self._process is not None:
            self._end(self._process)
            self._process = None

    def _start(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *self.target.split(":")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=os.environ | {"PYTHONPATH": path},
            pipesize=1 << 20,
        )  # fmt: skip
        weakref.finalize(self, self._end, self._process)

    def _ask(self, method: str, arguments: tuple, timeout: float):
        late = threading.Event()
        watch = threading.Timer(timeout, lambda: (late.set(), self._process.kill()))
        watch.start()
        try:
            pickle.dump((method, arguments), self._process.stdin, protocol=5)
            self._process.stdin.flush()
            done, result = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self._process.wait()
            said = self._last_words()
            self.close()
            if late.is_set():
                raise SynthCrash(f"{self.name} did not answer for {timeout:g} s and was stopped") from None
            killed = code == -getattr(signal, "SIGKILL", 0)
            raise SynthCrash(f"{self.name} crashed ({_cause(code)}){said}", killed) from None
        except BaseException:  # an interrupt: its answer would be taken for the next one's
            self.close()
            raise
        finally:
            watch.cancel()
        if not done:
            if method == "__init__":
                self.close()
            raise result
        return result

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written has no reader
                stream.close()


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(module: str, name: str) -> None:
    """The other process: make the object, answer calls on stdin, end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # plugins print
    target = None
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # the caller is gone; a plugin's own end may crash
        try:
            if method == "__init__":
                target, result = getattr(importlib.import_module(module), name)(*arguments), None
            else:
                result = getattr(target, method)(*arguments)
            answer = True, result
        except Exception as error:
            answer = False, error
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
