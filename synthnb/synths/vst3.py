"""Any VST3 instrument, hosted by pedalboard: no display, no editor, the same patch gives the same sound.

What a host has to know (measured on Surge XT and the mda instruments):

- pedalboard's reading of every parameter's texts takes seconds on a large plugin; addressed by index it isn't needed.
- A value reaches the plugin with the next block, and one equal to what the host remembers is dropped, although a state
  that was loaded in between has changed it: each parameter is written twice, first a little off.
- What sounds ends for certain only if a state is loaded anew (Surge XT) and, after that has come into effect with the
  next block, the plugin is reset (mda).
- Within `process`, pedalboard may load the plugin again; what was taken from it before is then invalid.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthnb.sound import SAMPLE_RATE
from synthnb.synths import PresetError, SynthError
from synthnb.synths.find import find_plugin
from synthnb.synths.host import Host

if TYPE_CHECKING:
    from synthnb.space import Note, ParameterSpace, Patch

BLOCK = 32  # samples; what Surge computes at once, and a divisor of what others do
SETTLE = 64  # blocks, 46 ms, between the last parameter and the note: what is smoothed has then arrived
NUDGE = 0.013  # of a raw value that is written first


class Plugin:
    """A loaded plugin, in the process that it lives in; parameters go by index and raw value (0 to 1).

    Raises:
        SynthError: it can't be loaded or is no instrument.
    """

    def __init__(self, path: str, plugin_name: str | None = None):
        from pedalboard import VST3Plugin

        # pedalboard calls this after loading, to look at the text of every value of every parameter.
        VST3Plugin.__set_initial_parameter_values__ = lambda plugin, values: None
        try:
            self._plugin = VST3Plugin(path, plugin_name=plugin_name)
        except (ImportError, ValueError, RuntimeError) as error:
            raise SynthError(f"{path} could not be loaded: {error}") from None
        if not self._plugin.is_instrument:
            raise SynthError(f"'{self._plugin.name}' is an effect, not an instrument: it plays no notes")
        self._initial, self._kind = self._plugin.raw_state, ...
        self._play([], BLOCK)

    def parameters(self) -> list[tuple[str, float, str]]:
        """Name, raw value and text of every parameter, by index."""
        return [(p.name, p.raw_value, p.string_value) for p in self._plugin._parameters]

    def texts(self, index: int, steps: int = 1000) -> list[str]:
        """The text of a parameter's raw values 0, 1/steps, …, 1."""
        p = self._plugin._parameters[index]
        return [p.get_text_for_raw_value(i / steps) for i in range(steps + 1)]

    def load(self, state: bytes | None) -> None:
        """Go to a state (`.vstpreset` bytes; None: the initial one). Raises `PresetError`."""
        try:
            if state is None:
                self._write("raw_state", self._initial)  # brings the host's values back too
            else:
                self._write("preset_data", state)
        except (RuntimeError, ValueError) as error:
            raise PresetError(f"the plugin refuses this preset: {error}") from None
        self._play([], BLOCK)

    def set(self, values: list[tuple[int, float]]) -> None:
        """Set raw values and render a block, so that they are in effect."""
        parameters = self._plugin._parameters  # never kept: pedalboard may reload the plugin inside `process`
        for index, raw in values:
            parameters[index].raw_value = raw - NUDGE if raw > 0.5 else raw + NUDGE
        for index, raw in values:
            parameters[index].raw_value = raw
        self._play([], BLOCK)

    def state(self, state: bytes | None = None, values: list[tuple[int, float]] | None = None) -> bytes:
        """The plugin's state, as the bytes of a `.vstpreset`, after loading one and setting values."""
        self.load(state)
        if values:
            self.set(values)
        return self._plugin.preset_data

    def values(self, state: bytes) -> list[float]:
        """The raw values that a state has, by index."""
        self.load(state)
        self._write("raw_state", self._plugin.raw_state)  # a preset alone may leave the host's values behind
        return [p.raw_value for p in self._plugin._parameters]

    def after(self, values: list[tuple[int, float]]) -> list[float]:
        """All raw values, by index, after setting some in the initial state."""
        self.load(None)
        self.set(values)
        return [p.raw_value for p in self._plugin._parameters]

    def render(
        self,
        state: bytes | None,
        values: list[tuple[int, float]],
        note: tuple,
        seconds: float,
        kind: object = None,
    ) -> np.ndarray:
        """Load a state, set raw values, play one note: float32 `(2, round(seconds * 44100))`.

        Time before the note is silence that no plugin is asked for, down to the block in which the note begins.

        A state whose `kind` is another than that of the state before is loaded twice: what it makes anew (an effect of
        another type) begins otherwise than what was there already.
        """
        if kind != self._kind:
            self.load(state)
            self._kind = kind
        self.load(state)
        if values:
            self.set(values)
        self._play([], SETTLE * BLOCK, reset=True)
        started = time.perf_counter()
        pitch, velocity, start, end = note
        length = round(seconds * SAMPLE_RATE)
        before = min(int(start * SAMPLE_RATE), length - 1) // BLOCK * BLOCK
        audio, waited = np.zeros((2, length), np.float32), before / SAMPLE_RATE
        messages = [(bytes([0x90, pitch, velocity]), start - waited), (bytes([0x80, pitch, 0]), end - waited)]
        audio[:, before:] = self._play(messages, length - before)
        self._played = time.perf_counter() - started
        return audio

    def played(self) -> float:
        """Seconds that the last note took the plugin."""
        return self._played

    def _write(self, name: str, value: bytes) -> None:
        """Assign to an attribute past pedalboard's `__setattr__`, which looks at every parameter's texts first."""
        getattr(type(self._plugin), name).fset(self._plugin, value)

    def _play(self, messages: list, samples: int, reset: bool = False) -> np.ndarray:
        # Whole blocks: a plugin that is left inside one starts the next note late.
        length = -(-samples // BLOCK) * BLOCK
        audio = self._plugin.process(messages, (length + 0.5) / SAMPLE_RATE, SAMPLE_RATE, 2, 512, reset)
        return audio[:, :samples]


class VST3:
    """The plugin that a space names, as a `Synth`; it lives in a process of its own, so threads may use it.

    A parameter's `key` is the plugin's name for it (a second one of that name: `name#2`), its value the raw one, or
    the code of its choice. `base` holds raw values of other parameters, by key, that all patches share.

    Raises:
        SynthNotFound: the plugin isn't where plugins are.
        SynthError: it can't be loaded, is no instrument, or lacks a parameter of the space.
    """

    channels = 2
    preset_suffix = ".vstpreset"
    bank_size = 1
    how_to_load = (
        "Load the plugin in your host.",
        "Load the .vstpreset from the host's preset menu.",
    )

    def __init__(self, space: ParameterSpace):
        self.space = space
        self.host = Host("synthnb.synths.vst3:Plugin", *self._find(), name=space.plugin)
        self._prepare()

    def _find(self) -> tuple[str, str | None]:
        return find_plugin(self.space.plugin)

    def _prepare(self) -> None:
        self._index = index_by_key([name for name, _, _ in self.host.call("parameters")])
        keys = [p.key or p.name for p in self.space.parameters]
        missing = [key for key in [*keys, *self.space.base] if key not in self._index]
        if missing:
            raise SynthError(
                f"{self.space.plugin} has no parameter {', '.join(missing[:5])}; make its space again"
            )

    def render(self, patch: Patch, note: Note, seconds: float) -> np.ndarray:
        """Play one note: float32 `(2, round(seconds * 44100))`, full scale not limited to 1.

        Raises `SpaceError` on a value that the space doesn't allow, `SynthError` if the plugin crashes or hangs.
        """
        return self.host.call(
            "render", None, self._values(patch), tuple(note), seconds, timeout=60 + 20 * seconds
        )

    def ceiling(self, patch: Patch, note: Note) -> float:
        """Infinite: nothing is known about a plugin."""
        return float("inf")

    def engine_seconds(self, patch: Patch, note: Note, seconds: float) -> float:
        """Seconds that the plugin itself takes for this note, after all that prepares it."""
        self.render(patch, note, seconds)
        return self.host.call("played")

    def _values(self, patch: Patch) -> list[tuple[int, float]]:
        own = {p.key or p.name: p.to_code(patch[p.name]) for p in self.space.parameters}
        return [(self._index[key], float(raw)) for key, raw in {**self.space.base, **own}.items()]

    def transpose(self, patch: Patch, semitones: int) -> Patch | None:
        """None: what a plugin's parameters mean isn't known."""
        return None

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write a `.vstpreset` (the format has no place for `name`) that any VST3 host loads. Returns its path."""
        self.space.check(patch)
        path = Path(path)
        path.write_bytes(self.host.call("state", None, self._values(patch)))
        return path

    def save_bank(self, path: str | Path, voices: list[tuple[str, Patch]]) -> Path:
        """Write the one named patch; see `save_preset`."""
        ((name, patch),) = voices
        return self.save_preset(path, patch, name)

    def load_preset(self, path: str | Path) -> Patch:
        """Read a `.vstpreset` of this plugin; a value outside the space becomes the nearest. Raises `PresetError`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PresetError(f"{path}: {error.strerror}; give the path of a .vstpreset") from error
        preset_chunk(data, path)
        raw = self.host.call("values", data)
        return {p.name: p.from_code(raw[self._index[p.key or p.name]]) for p in self.space.parameters}

    def load_bank(self, path: str | Path) -> list[tuple[str, Patch]]:
        """The one preset in a file, with the file's name. Raises `PresetError`."""
        return [(Path(path).stem, self.load_preset(path))]


def preset_file(class_id: str, chunk: bytes) -> bytes:
    """A plugin's chunk as a `.vstpreset`: a header of 48 bytes, the chunk, a list that says where it is."""
    contents = b"List" + struct.pack("<I4sQQ", 1, b"Comp", 48, len(chunk))
    return b"VST3" + struct.pack("<I32sQ", 1, class_id.encode(), 48 + len(chunk)) + chunk + contents


def preset_chunk(data: bytes, path: str | Path) -> bytes:
    """The chunk in the bytes of a `.vstpreset`; `path` is for messages. Raises `PresetError`."""
    if data[:4] != b"VST3":
        raise PresetError(f"{path}: not a VST3 preset; it starts with {data[:4].hex(' ') or 'nothing'}")
    try:
        (at,) = struct.unpack_from("<Q", data, 40)
        title, count = struct.unpack_from("<4sI", data, at)
        entries = [struct.unpack_from("<4sQQ", data, at + 8 + 20 * i) for i in range(count)]
        first, size = next((first, size) for kind, first, size in entries if kind == b"Comp")
    except (struct.error, StopIteration, OverflowError):
        title, first, size = b"", 0, 0
    if title != b"List" or not 48 <= first <= first + size <= len(data):
        raise PresetError(f"{path}: truncated or damaged; the preset in it can't be found")
    return data[first : first + size]


def index_by_key(names: list[str]) -> dict[str, int]:
    """Key to index: a parameter's name, and `name#2`, `name#3` where it comes again."""
    index: dict[str, int] = {}
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        index[name if seen[name] == 1 else f"{name}#{seen[name]}"] = i
    return index
