"""Surge XT: what is special about it among plugins.

A patch isn't set parameter by parameter. It is written as Surge's own patch (XML in natural units, in the chunk that
its presets hold) and loaded whole, so nothing of the sound before is left, types come before what belongs to them, and
the file that a user gets is exactly what was rendered. What the XML doesn't mention is Surge's default.

A key is Surge's name for storage (`a_pitch`), or, after a slash, how far a source moves it (`a_pitch/17`: by LFO 1).
What belongs to an oscillator or filter of some types only names them after an at sign (`a_osc1_param0@1`: of a sine;
`a_filter1_subtype@8.25`: of either comb). A space's `base` holds what all its patches share, by those names: a number,
or a mapping of `value` and flags (`temposync`, `extend_range`, …), with `modrouting: {source: depth}` for what moves
it (17 is LFO 1, 22 LFO 6).
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from synthnb.synths import SynthNotFound
from synthnb.synths.surge.ceiling import ceiling
from synthnb.synths.surge.patch import (
    CLASS_ID,
    FLOAT,
    parse_chunk,
    read_chunk,
    write_chunk,
    write_preset,
)
from synthnb.synths.vst3 import VST3, preset_chunk, preset_file

if TYPE_CHECKING:
    from synthnb.space import Note, Parameter, Patch

#: What belongs to an oscillator, effect or filter and depends on its type.
UNIT = re.compile(r"([ab]_osc\d|fx\d+|[ab]_filter\d)_(?:p(?:aram)?\d+|subtype)")
EFFECTS = re.compile(rb"<(fx\d+_type) [^>]*value=\"(\d+)")
KEY = re.compile(r"(\w+)(?:/(\d+))?(?:@([\d.]+))?")
VELOCITY, FIRST_LFO = 1, 17  # sources of modulation; there are 12 LFOs
DELAY = 1  # the type of that effect
SAME = 1e-5  # relative difference of two values that float32 and its way through text don't keep apart


class SurgeXT(VST3):
    """Surge XT as a `Synth`. A parameter's `key` is Surge's name for storage, its value in Surge's own units.

    Raises:
        SynthNotFound: Surge XT is not installed.
        SynthError: it can't be loaded.
    """

    preset_suffix = ".fxp"
    how_to_load = (
        "Drop the .fxp onto Surge XT, or click the patch's name there and choose 'Load Patch from File...'.",
        "To keep it in the browser, put it into Documents/Surge XT/Patches and choose 'Refresh Patch Browser' there.",
    )

    def _prepare(self) -> None:
        self._places = [Place.of(p) for p in self.space.parameters]

    @functools.cached_property
    def _known(self) -> dict[str, set[float]]:
        """What each oscillator, effect and filter can be in this space."""
        types = {place.target: set(place.parameter.codes) for place in self._places}
        return {
            key.removesuffix("_type"): types.get(key) or {float(setting["value"])}
            for key, setting in self._base.items()
            if key.endswith("_type")
        }

    def _active(self, patch: Patch) -> Iterator[Place]:
        """The places that count in a patch: not those of a type that something now hasn't."""
        types = {
            place.target.removesuffix("_type"): place.parameter.to_code(patch[place.parameter.name])
            for place in self._places
            if place.target.endswith("_type")
        }
        for place in self._places:
            if not place.kinds or types.get(unit_of(place.target)) in place.kinds:
                yield place

    def _find(self) -> tuple[str, str | None]:
        try:
            return super()._find()
        except SynthNotFound as error:
            raise SynthNotFound(f"Surge XT is not installed; run 'make surge' to get it ({error})") from None

    def chunk(self, patch: Patch, name: str = "synthnb") -> bytes:
        """A patch as Surge keeps it in its presets. Raises `SpaceError` on a value that the space doesn't allow."""
        settings = {
            key: copy.deepcopy(v) if isinstance(v, dict) else {"value": v}
            for key, v in self.space.base.items()
        }
        for p, target, source, _ in self._active(patch):
            value = p.to_code(patch[p.name])
            if source is None:
                settings.setdefault(target, {})["value"] = value if p.states else float(value)
            elif value:
                settings.setdefault(target, {}).setdefault("modrouting", {})[source] = float(value)
        return write_chunk(settings, name)

    def render(self, patch: Patch, note: Note, seconds: float) -> np.ndarray:
        """Play one note: float32 `(2, round(seconds * 44100))`; see `VST3.render`."""
        chunk = self.chunk(patch)
        state, kind = preset_file(CLASS_ID, chunk), EFFECTS.findall(chunk)
        return self.host.call("render", state, [], tuple(note), seconds, kind, timeout=60 + 20 * seconds)

    @functools.cached_property
    def _simple(self) -> bool:
        """Whether the space is `surge_simple`, perhaps with other priors or a shorter clip."""
        published, own = (
            (s.base, s.velocity, [(p.name, p.key) for p in s.parameters])
            for s in (type(self.space).load("surge_simple"), self.space)
        )
        return own == published

    def ceiling(self, patch: Patch, note: Note) -> float:
        """LUFS that this note should not exceed: of patches of `surge_simple`; infinite for other spaces."""
        return ceiling(patch, note) if self._simple else float("inf")

    def transpose(self, patch: Patch, semitones: int) -> Patch | None:
        """The same sound, so many semitones higher: by the scene's octave and pitch, else by those of each oscillator.

        None if their ranges end before. It is what a higher key plays, but for rounding: exact in most patches.
        """
        own = {place.target: place.parameter for place in self._places if place.source is None}
        units = ["a"] if own.keys() & {"a_octave", "a_pitch"} else ["a_osc1", "a_osc2", "a_osc3"]
        moves = [_move(patch, own.get(f"{u}_octave"), own.get(f"{u}_pitch"), semitones) for u in units]
        return None if None in moves else patch | dict(item for move in moves for item in move.items())

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write an `.fxp`, or a `.vstpreset` if `path` ends so; Surge shows `name`, author and category `synthnb`."""
        self.space.check(patch)
        return write_preset(path, self.chunk(patch, name), name)

    def load_preset(self, path: str | Path) -> Patch:
        """Read an `.fxp` or `.vstpreset` as far as the space covers it, and warn of what it does not.

        Raises `PresetError`.
        """
        patch, missed = self.read_preset(path)
        if missed:
            warnings.warn(
                f"{path}: space '{self.space.name}' does not cover {', '.join(missed)}", stacklevel=2
            )
        return patch

    def load_bank(self, path: str | Path) -> list[tuple[str, Patch]]:
        """The one preset in a file, as far as the space covers it, with the file's name. Raises `PresetError`."""
        return [(Path(path).stem, self.read_preset(path)[0])]

    def read_preset(self, path: str | Path) -> tuple[Patch, list[str]]:
        """A preset's patch, and what is heard of it that the space can't say (`a_osc2_type 3`). Raises `PresetError`.

        What velocity and macros add to a value is part of it, as they stay where they are while the note sounds.
        """
        state = self.host.call("state", preset_file(CLASS_ID, read_chunk(path)))
        heard, macros = parse_chunk(preset_chunk(state, path), path)
        places = {(place.target, place.source) for place in self._places}
        self._fix(heard, {VELOCITY: self.space.velocity / 127, **macros}, places)
        # What depends on a type means something else where that is another.
        kinds = {unit: float(heard.get(f"{unit}_type", {}).get("value", 0)) for unit in self._known}
        other = {unit for unit, kind in kinds.items() if kind not in self._known[unit]}
        for unit in {unit for unit, kind in kinds.items() if unit.startswith("fx") and kind == DELAY} - other:
            left, right = heard[f"{unit}_p0"], heard[f"{unit}_p1"]
            if (right.get("deactivated"), self._base[f"{unit}_p1"].get("deactivated")) == ("1", "0"):
                right |= {"value": left["value"], "deactivated": "0"}  # the right one then follows the left
        patch = {}
        for p, target, source, meant in self._places:
            unit = unit_of(target)
            if unit in other or (meant and kinds.get(unit) not in meant):
                patch[p.name] = p.default
                continue
            value = _held(heard, target, source)
            patch[p.name] = p.from_code(value)
            if p.codes and not _same(value, p.to_code(patch[p.name])):
                patch[p.name] = p.default  # the nearest number is no similar choice
        return patch, self._missed(heard, patch, other)

    def _missed(self, heard: dict[str, dict], patch: Patch, other: set[str]) -> list[str]:
        """What differs in Surge between settings and a patch, without what is not heard or belongs to `other` units."""
        would, idle = self.settings(self.chunk(patch)), _idle(heard)
        names = {(target, source): p.name for p, target, source, _ in self._active(patch)}
        missed = []
        for key in heard.keys() | would.keys():
            if key.startswith(idle) or unit_of(key) in other:
                continue
            has, gets = heard.get(key, {}), would.get(key, {})
            off = has.get("deactivated") == gets.get("deactivated") == "1"  # then the value isn't heard
            for flag in (has.keys() | gets.keys()) - {"type", "modrouting", *["value"] * off}:
                if not _same(has.get(flag), gets.get(flag)):
                    name = names.get((key, None), key) if flag == "value" else f"{key} {flag}"
                    missed.append(f"{name} {float(has.get(flag) or 0):g}")
            routes, known = has.get("modrouting", {}), gets.get("modrouting", {})
            for source in routes.keys() | known.keys():
                if not _same(routes.get(source), known.get(source)):
                    name = names.get((key, source), f"{key}/{source}")
                    missed.append(f"{name} {routes.get(source, 0):g}")
        return sorted(missed)

    @staticmethod
    def _fix(settings: dict[str, dict], steady: dict[int, float], places: set) -> None:
        """Make what sources that don't move add to a parameter of the space part of its value."""
        for key, setting in settings.items():
            if (key, None) in places and setting["type"] == FLOAT:
                for source in setting["modrouting"].keys() & steady.keys():
                    if (key, source) not in places:
                        added = setting["modrouting"].pop(source) * steady[source]
                        setting["value"] = f"{float(setting['value']) + added}"

    @functools.cached_property
    def _base(self) -> dict[str, dict]:
        return self.settings(self.chunk(self.space.default_patch))

    def settings(self, chunk: bytes) -> dict[str, dict]:
        """What Surge makes of a chunk: by storage name `value`, flags and `modrouting`. Raises `PresetError`."""
        state = self.host.call("state", preset_file(CLASS_ID, chunk))
        return parse_chunk(preset_chunk(state, "the state of Surge XT"))[0]

    def wrong(self, patch: Patch) -> list[str]:
        """The parameters that Surge holds otherwise than `patch` says, after loading it; empty is right."""
        held = self.settings(self.chunk(patch))
        pairs = [
            (p.name, _held(held, target, source), p.to_code(patch[p.name]))
            for p, target, source, _ in self._active(patch)
        ]
        return [
            f"{name} is {value:g}, not {asked:g}" for name, value, asked in pairs if not _same(value, asked)
        ]


class Place(NamedTuple):
    """Where a parameter is in Surge's patch: an element, which source moves it (None: its value), of what types."""

    parameter: Parameter
    target: str
    source: int | None
    kinds: frozenset[int]

    @classmethod
    def of(cls, parameter: Parameter) -> Place:
        target, source, kinds = KEY.fullmatch(parameter.key or parameter.name).groups()
        return cls(
            parameter, target, source and int(source), frozenset(map(int, kinds.split(".") if kinds else ()))
        )


def _move(
    patch: Patch, octave: Parameter | None, pitch: Parameter | None, semitones: int
) -> dict[str, float | str] | None:
    """What moves an octave and a pitch, either of which may be missing, by semitones; the pitch as little as it can."""
    before = float(patch[pitch.name]) if pitch else 0.0
    octaves = {octave.to_code(patch[octave.name]) - code: code for code in octave.codes} if octave else {0: 0}
    pitches = {before + semitones + 12 * down: code for down, code in octaves.items()}
    low, high = (pitch.low, pitch.high) if pitch else (0, 0)
    reached = [value for value in pitches if low <= value <= high]
    if not reached:
        return None
    nearest = min(reached, key=lambda value: abs(value - before))
    moved = {pitch.name: nearest} if pitch else {}
    return moved | ({octave.name: octave.from_code(pitches[nearest])} if octave else {})


def unit_of(target: str) -> str | None:
    """The oscillator, effect or filter (`a_osc1`) on whose type the parameter's meaning depends; None if on none."""
    match = UNIT.match(target)
    return match and match[1]


def _idle(settings: dict[str, dict]) -> tuple[str, ...]:
    """How the names begin of what a patch doesn't use: a second scene, LFOs that move nothing, empty effects."""
    single = _held(settings, "scenemode") == 0
    used = {source for setting in settings.values() for source in setting["modrouting"]}
    lfos = [f"{scene}_lfo{i}_" for scene in "ab" for i in range(12) if FIRST_LFO + i not in used]
    effects = [f"fx{i}_" for i in range(1, 17) if f"fx{i}_type" not in settings]
    return (*lfos, *effects, *["b_"] * single)


def _held(settings: dict[str, dict], target: str, source: int | None = None) -> float:
    if source is None:
        return float(settings[target]["value"])
    return settings[target]["modrouting"].get(source, 0.0)


def _same(a: float | str | None, b: float | str | None) -> bool:
    return bool(np.isclose(float(a or 0), float(b or 0), SAME, SAME))
