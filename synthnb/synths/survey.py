"""Bring your own VST3: find out what a plugin's parameters are, and write them down as a space.

A plugin tells a name, a value from 0 to 1 and a text for each value. What is a step and what a knob, what is heard and
what isn't, is found out here, by reading the texts and by rendering.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pandas as pd
import torch

from synthnb.features import log_mel
from synthnb.sound import is_as_loud_as
from synthnb.space import LOUDNESS_FLOOR, Note, ParameterSpace
from synthnb.synths import SynthError
from synthnb.synths.find import find_plugin
from synthnb.synths.host import Host
from synthnb.synths.vst3 import VST3, index_by_key

STEPS = 1000  # a parameter's range is read in so many
MOST_CHOICES = 40  # a parameter with more texts is continuous
SETTINGS = (0.0, 0.25, 0.5, 0.75, 1.0)  # raw values at which a parameter is listened to
CONTEXTS = 6  # patches around which it is: the plugin's own, and random ones, in which more is switched on
HEARD = 0.5  # dB of the log-mel, on average: a parameter that never changes more isn't heard
PATCHES = 100  # random ones that tell how many are silent
DEFAULT_SHARE = 0.25  # of the proposed prior: how often a parameter stays where the plugin has it


def survey(
    plugin: str, seconds: float = 2.0, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[ParameterSpace, pd.DataFrame, dict[str, float]]:
    """Look at every parameter of a VST3 instrument.

    Args:
        plugin: its name or path; see `find_plugin`.
        seconds: length of a clip; the note lasts for half of it.
        seed: of the random patches around which parameters are listened to.
        progress: called with `(parameters done, parameters)`.

    Returns:
        A space of what is heard; a row for every parameter (`key`, `kind`, `values`, `default`, `heard`: the largest
        change in dB, `why_not`: the reason if it is left out); and what was measured of the whole: `floor`, the same
        patch against itself in dB, and `silent`, the share of random patches that are.

    Raises:
        SynthNotFound, SynthError: see `VST3`; or the plugin makes no sound.
    """
    path, name = find_plugin(plugin)
    find_plugin(
        name
    )  # a space holds no path; that it isn't found by its name is better told now than at the end
    with closing(Host("synthnb.synths.vst3:Plugin", path, name, name=name)) as host:
        rows = _read(host)
        floor = _listen(host, rows, seconds, np.random.default_rng(seed), progress)
    space = _space(name, rows, seconds)
    synth, rng = VST3(space), np.random.default_rng(seed)
    with closing(synth.host):
        loud = [
            is_as_loud_as(synth.render(*space.sample(rng), seconds), LOUDNESS_FLOOR) for _ in range(PATCHES)
        ]
    return space, _table(rows), {"floor": floor, "silent": 1 - float(np.mean(loud))}


def _read(host: Host) -> list[dict]:
    """A row for every parameter, by what its texts tell and whether it moves others."""
    keys = index_by_key([name for name, _, _ in host.call("parameters")])
    own = host.call("after", [])
    rows = []
    for i, (key, raw) in enumerate(zip(keys, own)):
        controller = key.startswith("MIDI CC ")  # JUCE shows plugins' hosts 2,080 of them
        rows.append(_row(key, raw, [""] if controller else host.call("texts", i, STEPS)))
    for i, row in enumerate(rows):
        if row["why_not"]:
            continue
        # A parameter that moves others is a choice of programs, not a part of a patch.
        moved = host.call("after", [(i, 1.0 if row["default"] < 0.5 else 0.0)])
        if sum(abs(raw - own[j]) > 0.01 for j, raw in enumerate(moved)) > 3:
            row["why_not"] = "sets other parameters"
            host.close()  # not every plugin finds back
    return rows


def _listen(
    host: Host, rows: list[dict], seconds: float, rng: np.random.Generator, progress: Callable | None
) -> float:
    """Write into each row what is heard of it; returns the floor, the same patch against itself in dB."""
    free = [i for i, row in enumerate(rows) if not row["why_not"]]
    contexts = [
        {i: rows[i]["default"] for i in free},
        *({i: float(rng.choice(rows[i]["raws"])) for i in free} for _ in range(CONTEXTS - 1)),
    ]

    def mel(values: dict[int, float]) -> np.ndarray:
        audio = host.call("render", None, list(values.items()), (60, 100, 0.0, seconds / 2), seconds)
        return log_mel(torch.from_numpy(audio)).numpy()

    plain = [mel(context) for context in contexts]
    if all(np.ptp(m) == 0 for m in plain):
        raise SynthError(f"{host.name} made no sound with {CONTEXTS} patches at C4; is it an instrument?")
    floors = [float(np.abs(mel(context) - m).mean()) for context, m in zip(contexts, plain)]
    for done, i in enumerate(free, start=1):
        changes = [
            float(np.abs(mel({**context, i: setting}) - m).mean()) - floor
            for context, m, floor in zip(contexts, plain, floors)
            for setting in SETTINGS
        ]
        rows[i]["heard"] = max(changes)
        if rows[i]["heard"] <= HEARD:
            rows[i]["why_not"] = "not heard"
        if progress:
            progress(done, len(free))
    return max(floors)


def _row(key: str, raw: float, texts: list[str]) -> dict:
    """What the texts of a parameter's range tell."""
    changes = [0, *(i for i in range(1, len(texts)) if texts[i] != texts[i - 1]), len(texts)]
    runs = [(texts[first], (first + last - 1) / 2 / STEPS) for first, last in itertools.pairwise(changes)]
    row = {"key": key, "default": float(raw), "heard": 0.0, "why_not": "", "choices": {}}
    if len(runs) == 1:
        return row | {"kind": "fixed", "raws": [float(raw)], "why_not": "one value only"}
    if len(runs) > MOST_CHOICES or len({text for text, _ in runs}) < len(runs):
        return row | {"kind": "continuous", "raws": list(np.linspace(0, 1, 11))}
    choices = {text.strip() or f"{at:g}": round(at, 4) for text, at in runs}
    return row | {"kind": "categorical", "choices": choices, "raws": list(choices.values())}


def _table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "key": row["key"],
                "kind": row["kind"],
                "values": _span(list(row["choices"])),
                "default": row["default"],
                "heard": row["heard"],
                "why_not": row["why_not"],
            }
            for row in rows
        ]
    )


def _span(choices: list[str]) -> str:
    if len(choices) <= 6:
        return ", ".join(choices) or "0 – 1"
    return f"{choices[0]} … {choices[-1]} ({len(choices)})"


def _space(plugin: str, rows: list[dict], seconds: float) -> ParameterSpace:
    kept = [row for row in rows if not row["why_not"]]
    if not kept:
        raise SynthError(f"none of the {len(rows)} parameters of {plugin} changes its sound")
    taken = Note._fields  # by the note
    names = list(index_by_key([*taken, *(_identifier(row["key"]) for row in kept)]))[len(taken) :]
    first_words = [n.split("_")[0] for n in names]
    parameters = {}
    for row, own, word in zip(kept, names, first_words):
        module = word if first_words.count(word) > 1 and word != "note" else "rest"
        entry = {
            "key": row["key"],
            "kind": row["kind"],
            "module": module,
            "prior": {"default_share": DEFAULT_SHARE},
        }
        if row["choices"]:
            nearest = min(row["choices"], key=lambda text: abs(row["choices"][text] - row["default"]))
            entry |= {"choices": row["choices"], "default": nearest}
        else:
            entry |= {"low": 0.0, "high": 1.0, "default": round(row["default"], 6)}
        parameters[own.replace("#", "_")] = entry
    head = {
        "name": _identifier(plugin),
        "synth": "vst3",
        "plugin": plugin,
        "seconds": seconds,
        "note": {
            "pitch": {"kind": "integer", "low": 36, "high": 84, "default": 60},
            "start": {
                "kind": "continuous",
                "low": 0.0,
                "high": 0.1,
                "default": 0.0,
                "prior": {"default_share": 0.5},
            },
            "end": {"kind": "continuous", "low": 0.2, "high": seconds - 0.1, "default": seconds / 2},
            "velocity": 100,
        },
    }
    return ParameterSpace.from_dict({**head, "parameters": parameters})


def _identifier(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower() or "parameter"
