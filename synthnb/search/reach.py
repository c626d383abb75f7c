"""How close is close for this synth: what a match is worth beside others that were searched as long."""

from __future__ import annotations

import bisect
import functools
import json
from pathlib import Path

REACHED = Path(__file__).with_name("reached.json")
WORDS = ("very close", "close", "rough", "out of reach")


@functools.cache
def reached() -> dict[str, dict]:
    """By space: `own` and `recorded`, sorted distances that notebook 09 measured, and after how many `seconds`."""
    return json.loads(REACHED.read_text()) if REACHED.is_file() else {}


def reach(space: str, distance: float) -> tuple[str, float] | None:
    """What a distance to the target means, in `WORDS`, and the share of past matches that came less close.

    The synth's own sounds (held-out clips and presets) can be matched exactly, recordings mostly can't. *Very close* is
    nearer than half of the synth's own sounds came, *close* than nine of ten of them, *rough* than nine of ten
    recordings. None for a space that nothing is known about.
    """
    known = reached().get(space)
    if known is None:
        return None
    own, recorded = known["own"], known["recorded"]
    edges = [own[len(own) // 2], own[9 * len(own) // 10], recorded[9 * len(recorded) // 10]]
    past = sorted([*own, *recorded])
    return WORDS[bisect.bisect_left(sorted(edges), distance)], 1 - bisect.bisect(past, distance) / len(past)
