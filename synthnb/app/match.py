"""The app: choose a sound, match it, listen, download the preset. It only shows what `Matcher` finds.

MatchApp()      # as the last line of a notebook cell
"""

from __future__ import annotations

import base64
import html
import io
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import ipywidgets as w
import numpy as np
import soundfile

from synthnb import plots
from synthnb.models.checkpoint import load_model
from synthnb.search.candidate import Candidate
from synthnb.search.match import Match
from synthnb.search.matcher import Matcher
from synthnb.sound import SAMPLE_RATE, UnusableSound, decode_sound, prepare, read_sound

EXAMPLES = Path(__file__).parents[2] / "datasets" / "examples"
SHOWN = 6  # candidates to choose from
DIFFERENCES = 10  # parameters that are named
TEXT_EVERY, PICTURE_EVERY = 0.5, 3.0  # seconds between updates while searching


def players(sounds: Mapping[str, np.ndarray]) -> str:
    """HTML with one player per sound `(channels, samples)`, titled; scaled together, so that levels compare."""
    peak = max(float(np.abs(audio).max()) for audio in sounds.values()) or 1.0
    parts = []
    for title, audio in sounds.items():
        wav = io.BytesIO()
        soundfile.write(wav, (audio / peak * 0.95).T, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        source = f"data:audio/wav;base64,{base64.b64encode(wav.getvalue()).decode()}"
        player = f'<audio controls src="{source}"></audio>'
        parts.append(
            f'<div style="display:inline-block; margin-right:2em">{html.escape(title)}<br>{player}</div>'
        )
    return "".join(parts)


def download(path: Path) -> str:
    """An HTML link that holds the file itself."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.name, quote=True)
    return f'<a download="{name}" href="data:application/octet-stream;base64,{data}">Download {name}</a>'


class MatchApp(w.VBox):
    """Match a sound with buttons and sliders.

    Args:
        model: checkpoint, by name or path.
        workers: processes that render; -1 takes all cores.

    Attributes:
        result: the `Match`, when it is found; None before.
        shown: the candidates to choose from.
    """

    def __init__(self, model: str | Path = "dexed", workers: int = -1):
        self.result: Match | None = None
        self._sound: np.ndarray | None = None
        self.shown: list[Candidate] = []
        self._name = "match"
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        examples = [(path.stem, path) for path in sorted(EXAMPLES.glob("*.flac"))]
        self.upload = w.FileUpload(accept="audio/*,.flac,.aiff", multiple=False, description="Upload a sound")
        self.example = w.Dropdown(options=[("or an example …", None), *examples])
        self.seconds = w.FloatSlider(value=10, min=1, max=120, step=1, description="seconds")
        self.start = w.Button(description="Match", button_style="primary", icon="play", disabled=True)
        self.stop = w.Button(description="Stop", icon="stop", disabled=True)
        self.status, self.error = w.HTML(), w.HTML()
        self.listen, self.table, self.details, self.files = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.picture = w.Image(format="png", layout=w.Layout(display="none", max_width="760px"))
        self.chosen = w.Dropdown(description="listen to", layout=w.Layout(display="none"))
        super().__init__(
            [
                w.HBox([self.upload, self.example]),
                self.seconds,
                w.HBox([self.start, self.stop, self.status]),
                self.error,
                self.chosen,
                self.listen,
                self.picture,
                self.table,
                self.details,
                self.files,
            ]
        )
        self.upload.observe(self._uploaded, "value")
        self.example.observe(self._example_chosen, "value")
        self.chosen.observe(lambda change: self._show_chosen(change.new), "value")
        self.start.on_click(lambda _: self._begin())
        self.stop.on_click(lambda _: self._stop.set())
        self.matcher: Matcher | None = None
        try:
            self.matcher = Matcher(load_model(model), workers)
        except Exception as error:
            self._fail(error)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the search has ended."""
        if self._thread:
            self._thread.join(timeout)

    # --- choosing a sound ---------------------------------------------------------------------------------------------

    def _uploaded(self, change) -> None:
        if change.new:
            file = change.new[0]
            self.example.value = None
            self._take(file["name"], lambda: decode_sound(file["content"], file["name"]))

    def _example_chosen(self, change) -> None:
        if change.new is not None:
            self._take(change.new.name, lambda: read_sound(change.new))

    def _take(self, name: str, read) -> None:
        if self.matcher is None:
            return
        self._clear()
        self._sound, self.start.disabled = None, True
        try:
            self._sound = prepare(read(), self.matcher.space.seconds)
        except (UnusableSound, OSError) as error:
            self._fail(error)
            return
        self._name = Path(name).stem
        self.listen.value = players({name: self._sound})
        self.start.disabled = False

    def _clear(self) -> None:
        """Forget the last match."""
        self.result = None
        for part in (self.status, self.error, self.listen, self.table, self.details, self.files):
            part.value = ""
        self.picture.layout.display = self.chosen.layout.display = "none"
        self.chosen.options = ()

    def _fail(self, error: Exception) -> None:
        self.error.value = (
            f'<span style="color:#B00020">{html.escape(str(error) or type(error).__name__)}</span>'
        )

    # --- searching ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._clear()
        self.listen.value = players({"target": self._sound})
        self._stop.clear()
        self._set_running(True)
        self.status.value = "searching …"
        self._thread = threading.Thread(target=self._search, daemon=True)
        self._thread.start()

    def _set_running(self, running: bool) -> None:
        # While it runs, the synth belongs to the search: nothing else may be chosen or rendered.
        for part in (self.start, self.upload, self.example, self.seconds):
            part.disabled = running
        self.stop.disabled = not running

    def _search(self) -> None:
        shown = {"text": 0.0, "picture": 0.0}

        def due(what: str, every: float) -> bool:
            now = time.monotonic()
            if now - shown[what] < every:
                return False
            shown[what] = now
            return True

        def progress(match: Match) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            if due("text", TEXT_EVERY):
                self._show_progress(match)
            if due("picture", PICTURE_EVERY):
                self._show_picture(match)

        try:
            match = self.matcher.match(self._sound, self.seconds.value, progress=progress)
            self._show_result(match)
        except Exception as error:  # in a thread: nobody else would tell
            self._fail(error)
        finally:
            self._set_running(False)

    def _show_progress(self, match: Match) -> None:
        seconds, renders, distance = match.history[-1]
        self.status.value = (
            f"distance <b>{distance:.2f}</b> (began with {match.history[0][2]:.2f}), "
            f"{renders:,} renders, {seconds:.0f} s"
        )

    def _show_picture(self, match: Match, candidate: Candidate | None = None) -> None:
        png = io.BytesIO()
        try:
            plots.compare(match.target, match.audio(candidate), self._name).savefig(png, format="png")
        except Exception as error:  # the search goes on, and what it finds can be heard and downloaded
            self._fail(error)
        else:
            self.picture.value, self.picture.layout.display = png.getvalue(), None

    # --- showing what was found ---------------------------------------------------------------------------------------

    def _show_result(self, match: Match) -> None:
        self._show_progress(match)
        self.shown = match.different(SHOWN)
        self.table.value = match.table(SHOWN, self.shown).to_html(float_format="{:.2f}".format, border=0)
        self.result = match
        self.chosen.options = [(f"{i + 1}: {match.say(c)}", i) for i, c in enumerate(self.shown)]
        self.chosen.value = 0  # which shows it
        self.chosen.layout.display = None

    def _show_chosen(self, index: int | None) -> None:
        match = self.result
        if index is None or match is None:
            return
        candidate = self.shown[index]
        self.listen.value = players({"target": match.target, "match": match.audio(candidate)})
        steps = [*match.synth.how_to_load, match.how_to_play(candidate)]
        differ = match.differences(candidate)
        named = [
            f"{row.parameter} {row.value} ({row.default})" for row in differ.head(DIFFERENCES).itertuples()
        ]
        self.details.value = "".join(f"<li>{html.escape(step)}</li>" for step in steps) + html.escape(
            f"{len(differ)} of {len(match.space.parameters)} parameters differ from the default patch: "
            + ", ".join(named)
            + (" …" if len(differ) > DIFFERENCES else "")
        )
        with tempfile.TemporaryDirectory() as folder:
            paths = match.save(folder, self._name, candidate)
            self.files.value = " · ".join(download(paths[kind]) for kind in ("preset", "match"))
        self._show_picture(match, candidate)
