"""Surge XT's own patch: XML in natural units, in the chunk that its presets hold, and the two files around it.

An `.fxp` is a header of 60 bytes and the chunk, a `.vstpreset` wraps the same chunk as every VST3 host does. A patch of
settings maps Surge's storage names to `value`, flags and `modrouting`; what it doesn't mention is Surge's default.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from synthnb.synths import PresetError
from synthnb.synths.vst3 import preset_chunk, preset_file

CLASS_ID = "ABCDEF019182FAEB566D624153675854"  # of the VST3, as preset files name it
REVISION = 24  # of the patch format; that of the 1.3 releases, which later ones read
#: CcnK, 0, FPCh, version, cjs3, version, programs, name, chunk size.
FXP_HEADER = struct.Struct(">4sI4sIIII28sI")
#: sub3, size of the XML, sizes of the wavetables of 2 x 3 oscillators.
CHUNK_HEADER = struct.Struct("<4s7I")
FXP_ID = int.from_bytes(b"cjs3", "big")
INTEGER, FLOAT = "0", "2"  # how Surge writes the type of a value
FIRST_MACRO = 7  # as a source of modulation

#: What is no parameter, as Surge writes it for an untouched patch; without some of it, it assumes an older format.
REST = (
    '<nonparamconfig><monoVoicePrority_0 v="1"/><monoVoicePrority_1 v="1"/><hardclipmodes global="1" sc0="1" sc1="1"/>'
    '<tuningApplicationMode v="1"/></nonparamconfig><compatability><correctlyTunedCombFilter v="1"/></compatability>'
    '<tempoOnSave v="120.0"/>'
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
    parse_chunk(chunk, path)
    return chunk


def parse_chunk(chunk: bytes, path: str | Path = "the patch") -> tuple[dict[str, dict], dict[int, float]]:
    """A chunk's settings by storage name, and where its macros are, by source."""
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
        settings = {}
        for e in root.find("parameters"):
            _number(e.get("value", "0"))
            routes = {int(m.get("source")): _number(m.get("depth")) for m in e if m.get("muted") != "1"}
            settings[e.tag] = {**e.attrib, "modrouting": routes}
        entries = root.findall("customcontroller/entry")
        macros = {FIRST_MACRO + int(m.get("i")): _number(m.get("v")) for m in entries}
    except (ElementTree.ParseError, TypeError, ValueError) as error:  # what is missing is no number either
        raise PresetError(f"{path}: its patch is damaged ({error})") from None
    return settings, macros


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is no value")
    return number


def write_chunk(settings: dict[str, dict], name: str) -> bytes:
    """Settings as a chunk; Surge shows `name` and, as category and author, `synthnb`."""
    elements = "".join(_element(key, **setting) for key, setting in settings.items())
    title = quoteattr("".join(filter(str.isprintable, name)))
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><patch revision="{REVISION}"><meta name={title} category="synthnb" '
        f'comment="" author="synthnb" license=""/><parameters>{elements}</parameters>{REST}</patch>'
    ).encode()
    return CHUNK_HEADER.pack(b"sub3", len(xml), *[0] * 6) + xml


def write_preset(path: str | Path, chunk: bytes, name: str) -> Path:
    """Write an `.fxp`, or a `.vstpreset` if `path` ends so. Returns its path."""
    path = Path(path)
    if path.suffix == ".vstpreset":
        path.write_bytes(preset_file(CLASS_ID, chunk))
    else:
        title = name.encode("ascii", "replace")[:27]
        path.write_bytes(FXP_HEADER.pack(b"CcnK", 0, b"FPCh", 1, FXP_ID, 1, 1, title, len(chunk)) + chunk)
    return path


def _element(key: str, value: float | None = None, modrouting: dict | None = None, **flags) -> str:
    kind, text = (INTEGER, f"{value}") if isinstance(value, int) else (FLOAT, f"{value or 0.0:.14f}")
    text = "" if value is None else f' value="{text}"'  # without one, Surge takes its default
    flags = "".join(f' {name}="{flag}"' for name, flag in flags.items())
    routes = "".join(
        f'<modrouting source="{source}" depth="{depth:.14f}" muted="0" source_index="0"/>'
        for source, depth in (modrouting or {}).items()
    )
    return f'<{key} type="{kind}"{text}{flags}>{routes}</{key}>'
