"""Surge XT: what is special about it among plugins.

A patch isn't set parameter by parameter. It is written as Surge's own patch (XML in natural units, in the chunk that
its presets hold) and loaded whole, so nothing of the sound before is left, types come before what belongs to them, and
the file that a user gets is exactly what was rendered. What the XML doesn't mention is Surge's default.

A key is Surge's name for storage (`a_pitch`), or, after a slash, how far a source moves it (`a_pitch/17`: by LFO 1).
A space's `base` holds what all its patches share, by those names: a number, or a mapping of `value` and
flags (`temposync`, `extend_range`, …), with `modrouting: {source: depth}` for what moves it (17 is LFO 1, 22 LFO 6).
"""

from __future__ import annotations

import copy
import functools
import re
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np

from synthnb.synths import PresetError, SynthNotFound
from synthnb.synths.vst3 import VST3, preset_chunk, preset_file

if TYPE_CHECKING:
    from synthnb.space import Note, Patch

CLASS_ID = "ABCDEF019182FAEB566D624153675854"  # of the VST3, as preset files name it
REVISION = 24  # of the patch format; that of the 1.3 releases, which later ones read
#: CcnK, 0, FPCh, version, cjs3, version, programs, name, chunk size.
FXP_HEADER = struct.Struct(">4sI4sIIII28sI")
#: sub3, size of the XML, sizes of the wavetables of 2 x 3 oscillators.
CHUNK_HEADER = struct.Struct("<4s7I")
FXP_ID = int.from_bytes(b"cjs3", "big")
UNIT = re.compile(r"([ab]_osc\d|fx\d+)_p(?:aram)?\d")  # what belongs to an oscillator or an effect
SAME = 1e-5  # relative difference of two values that float32 and its way through text don't keep apart

#: What is no parameter, as Surge writes it for an untouched patch; without some of it, it assumes an older format.
REST = (
    '<nonparamconfig><monoVoicePrority_0 v="1"/><monoVoicePrority_1 v="1"/><hardclipmodes global="1" sc0="1" sc1="1"/>'
    '<tuningApplicationMode v="1"/></nonparamconfig><compatability><correctlyTunedCombFilter v="1"/></compatability>'
    '<tempoOnSave v="120.0"/>'
)


class SurgeXT(VST3):
    """Surge XT as a `Synth`. A parameter's `key` is Surge's name for storage, its value in Surge's own units.

    Raises:
        SynthNotFound: Surge XT is not installed.
        SynthError: it can't be loaded.
    """

    preset_suffix = ".fxp"

    def _prepare(self) -> None:
        self._keys = {p.key or p.name: p for p in self.space.parameters}

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
        for key, p in self._keys.items():
            value = p.to_code(patch[p.name])
            target, _, source = key.partition("/")
            if not source:
                settings.setdefault(target, {})["value"] = value if p.codes else float(value)
            elif value:
                settings.setdefault(target, {}).setdefault("modrouting", {})[int(source)] = float(value)
        elements = "".join(_element(key, **setting) for key, setting in settings.items())
        title = quoteattr("".join(letter for letter in name if letter.isprintable()))
        xml = (
            f'<?xml version="1.0" encoding="UTF-8"?><patch revision="{REVISION}"><meta name={title} '
            f'category="synthnb" comment="" author="synthnb" license=""/><parameters>{elements}</parameters>{REST}'
            "</patch>"
        ).encode()
        return CHUNK_HEADER.pack(b"sub3", len(xml), *[0] * 6) + xml

    def render(self, patch: Patch, note: Note, seconds: float) -> np.ndarray:
        """Play one note: float32 `(2, round(seconds * 44100))`; see `VST3.render`."""
        state = preset_file(CLASS_ID, self.chunk(patch))
        return self.host.call("render", state, [], tuple(note), seconds, timeout=60 + 20 * seconds)

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write an `.fxp`, or a `.vstpreset` if `path` ends so; Surge shows `name`, author and category `synthnb`."""
        self.space.check(patch)
        chunk, path = self.chunk(patch, name), Path(path)
        if path.suffix == ".vstpreset":
            path.write_bytes(preset_file(CLASS_ID, chunk))
        else:
            title = name.encode("ascii", "replace")[:27]
            path.write_bytes(FXP_HEADER.pack(b"CcnK", 0, b"FPCh", 1, FXP_ID, 1, 1, title, len(chunk)) + chunk)
        return path

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

    def read_preset(self, path: str | Path) -> tuple[Patch, list[str]]:
        """A preset's patch, and what else it has that the space can't say (`a_osc2_type 3`). Raises `PresetError`."""
        heard = self.settings(read_chunk(path))
        base = self._base
        patch, missed = {}, []
        # The parameters of an oscillator or effect mean something else where its type is another.
        types = {key: setting["value"] for key, setting in base.items() if key.endswith("_type")}
        other = {key[:-5] for key, kind in types.items() if not _same(heard.get(key, {}).get("value"), kind)}
        for key, p in self._keys.items():
            if (unit := UNIT.match(key)) and unit[1] in other:
                patch[p.name] = p.default
                continue
            value = _held(heard, key)
            patch[p.name] = p.from_code(value)
            if not _same(value, p.to_code(patch[p.name])):
                missed.append(f"{p.name} {value:g}")
        for key in heard.keys() | base.keys():
            has, would = heard.get(key, {}), base.get(key, {})
            if (unit := UNIT.match(key)) and unit[1] in other:
                continue
            for flag in (has.keys() | would.keys()) - {"type", "modrouting"}:
                if not (flag == "value" and key in self._keys) and not _same(has.get(flag), would.get(flag)):
                    missed.append(
                        f"{key}{'' if flag == 'value' else f' {flag}'} {float(has.get(flag) or 0):g}"
                    )
            routes, known = has.get("modrouting", {}), would.get("modrouting", {})
            for source in routes.keys() | known.keys():
                if f"{key}/{source}" not in self._keys and not _same(routes.get(source), known.get(source)):
                    missed.append(f"{key}/{source} {routes.get(source, 0):g}")
        return patch, sorted(missed)

    @functools.cached_property
    def _base(self) -> dict[str, dict]:
        return self.settings(self.chunk(self.space.default_patch))

    def settings(self, chunk: bytes) -> dict[str, dict]:
        """What Surge makes of a chunk: by storage name `value`, flags and `modrouting`. Raises `PresetError`."""
        state = self.host.call("state", preset_file(CLASS_ID, chunk))
        return _settings(preset_chunk(state, "the state of Surge XT"))

    def wrong(self, patch: Patch) -> list[str]:
        """The parameters that Surge holds otherwise than `patch` says, after loading it; empty is right."""
        held = self.settings(self.chunk(patch))
        pairs = [(p.name, _held(held, key), p.to_code(patch[p.name])) for key, p in self._keys.items()]
        return [
            f"{name} is {value:g}, not {asked:g}" for name, value, asked in pairs if not _same(value, asked)
        ]


def _held(settings: dict[str, dict], key: str) -> float:
    target, _, source = key.partition("/")
    return (
        settings[target]["modrouting"].get(int(source), 0.0) if source else float(settings[target]["value"])
    )


def read_chunk(path: str | Path) -> bytes:
    """Surge's chunk in an `.fxp` or `.vstpreset`. Raises `PresetError` on any other, damaged or truncated file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PresetError(f"{path}: {error.strerror}; give the path of a Surge XT preset") from error
    if data[:4] == b"VST3":
        if data[8:40] != CLASS_ID.encode():
            raise PresetError(
                f"{path}: a preset of another plugin (class {data[8:40].decode('ascii', 'replace')})"
            )
        chunk = preset_chunk(data, path)
    elif data[:4] == b"CcnK":
        if len(data) < FXP_HEADER.size:
            raise PresetError(f"{path}: truncated; an .fxp has {FXP_HEADER.size} bytes before its patch")
        _, _, kind, _, plugin, _, _, _, size = FXP_HEADER.unpack_from(data)
        if kind != b"FPCh" or plugin != FXP_ID:
            raise PresetError(f"{path}: a preset of another plugin, not of Surge")
        chunk = data[FXP_HEADER.size :]
        if len(chunk) < size:
            raise PresetError(
                f"{path}: truncated; {size} bytes of patch are announced, {len(chunk)} are there"
            )
    else:
        raise PresetError(
            f"{path}: neither .fxp nor .vstpreset; it starts with {data[:4].hex(' ') or 'nothing'}"
        )
    _settings(chunk, path)
    return chunk


def _settings(chunk: bytes, path: str | Path = "the patch") -> dict[str, dict]:
    if chunk[:4] != b"sub3" or len(chunk) < CHUNK_HEADER.size:
        raise PresetError(f"{path}: holds no patch of Surge XT")
    _, size, *wavetables = CHUNK_HEADER.unpack_from(chunk)
    if len(chunk) < CHUNK_HEADER.size + size + sum(wavetables):
        raise PresetError(f"{path}: truncated; its patch and wavetables need more bytes than are there")
    xml = chunk[CHUNK_HEADER.size : CHUNK_HEADER.size + size]
    try:
        text = xml.decode()
    except UnicodeDecodeError:
        text = xml.decode("latin-1")  # older patches
    try:
        root = ElementTree.fromstring(
            re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#x?[0-9a-fA-F]+;|<\?xml.*?\?>", "", text)
        )
        parameters = list(root.find("parameters"))
    except (ElementTree.ParseError, TypeError) as error:
        raise PresetError(f"{path}: its patch is damaged ({error})") from None
    return {
        e.tag: {**e.attrib, "modrouting": {int(m.get("source")): float(m.get("depth")) for m in e}}
        for e in parameters
    }


def _element(key: str, value: float | None = None, modrouting: dict | None = None, **flags) -> str:
    kind, text = ("0", f"{value}") if isinstance(value, int) else ("2", f"{value or 0.0:.14f}")
    text = "" if value is None else f' value="{text}"'  # without one, Surge takes its default
    flags = "".join(f' {name}="{flag}"' for name, flag in flags.items())
    routes = "".join(
        f'<modrouting source="{source}" depth="{depth:.14f}" muted="0" source_index="0"/>'
        for source, depth in (modrouting or {}).items()
    )
    return f'<{key} type="{kind}"{text}{flags}>{routes}</{key}>'


def _same(a: float | str | None, b: float | str | None) -> bool:
    return bool(np.isclose(float(a or 0), float(b or 0), SAME, SAME))
