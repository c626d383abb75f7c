"""Match a sound: begin with what sounds alike, then let moves compete for the time that there is.

matcher = Matcher(load_model("dexed"))
match = matcher.match(prepare(read_sound("bass.wav")), seconds=10)
match.best.patch, match.best.distance, match.how_to_play()
match.save("outputs/bass")
matcher.go_on(match, seconds=30)      # better
matcher.vary(match, strength=0.3)     # others like it
"""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from synthnb.models.flow import FlowModel
from synthnb.search.candidate import Candidate, Press
from synthnb.search.credit import Credit
from synthnb.search.distance import HeardDistance
from synthnb.search.match import Match
from synthnb.search.moves import MOVES, library, noise, tune, varied
from synthnb.search.play import Player
from synthnb.search.state import Recording, State
from synthnb.sound import SAMPLE_RATE, check_sound
from synthnb.synths import SynthError

FIRST = 8  # candidates to begin with
FIRST_EDITS = 32  # renders before moves compete; until then the flow edits
SMALL, BATCH = 4, 16  # renders a move, at first and at most; between, a sixteenth of those before
TOP = 8  # those that join so many nearest earn a point for their move, a new best three more
MOVED = 12  # every so many moves, those that are out of tune are tuned
STUCK = 50  # moves without a new patch end a search: there is nothing left
#: Peaks. The floor of spectrograms (power 1e-10) begins to hide the quiet cells of a sound that peaks under -40 dBFS,
#: up to 2.5 dB on average at -50 and 11 at -60, so such a sound is raised to -6.
QUIET, NORMAL = 0.01, 0.5
#: What a file raises that is no match, wherever that is noticed.
DAMAGED = (EOFError, LookupError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class MatchError(ValueError):
    """A file that is no match, or one of another synth; the message says which."""


class Matcher:
    """Finds patches for sounds with one model and its synth.

    Args:
        model: from `load_model`, on any device; renders and distances stay on the CPU.
        workers: threads that render, each with its own synth; -1 takes all cores.
    """

    def __init__(self, model: FlowModel, workers: int = -1):
        self.model, self.space = model, model.space
        self.player = Player(self.space, workers)
        self.synth = self.player.synth

    def prepare_target(self, audio: np.ndarray) -> np.ndarray:
        """A sound `(channels, samples)` as the synth could make it: its channels and exactly the space's length.

        Its level is left alone, unless it peaks under -40 dBFS: then it is raised to -6, as spectrograms have a floor.
        Raises `UnusableSound`, or `ValueError` if the length is wrong (see `sound.prepare`).
        """
        check_sound(audio)
        audio = np.asarray(audio, dtype=np.float32)
        samples = round(self.space.seconds * SAMPLE_RATE)
        if audio.shape[1] != samples:
            raise ValueError(
                f"the sound has {audio.shape[1]} samples, {samples} are needed; use sound.prepare first"
            )
        if self.synth.channels == 1:
            audio = audio.mean(axis=0, keepdims=True)
            check_sound(audio, "this sound, mixed to mono")  # two channels may cancel out
        elif len(audio) == 1:
            audio = np.repeat(audio, 2, axis=0)
        peak = np.abs(audio).max()
        return audio * (NORMAL / peak) if peak < QUIET else audio

    def match(
        self,
        audio: np.ndarray | Sequence[np.ndarray],
        seconds: float = 30.0,
        renders: int | None = None,
        seed: int = 0,
        moves: Iterable[str] = MOVES,
        guidance: float | None = None,
        velocities: Sequence[int] | None = None,
        progress: Callable[[Match], None] | None = None,
    ) -> Match:
        """Search for patches that sound like `audio`, played with the key that was recorded.

        Args:
            audio: float32 `(channels, samples)`, as `sound.prepare` gives it; or several recordings of one sound,
                played with other keys or velocities. All of them count the same.
            seconds: how long.
            renders: how many, instead of `seconds`; the result is then the same on any machine, however busy.
            seed: of all draws; another one gives another take.
            moves: names in `MOVES`, those that compete.
            guidance: scale for the flow; by default the search tries several.
            velocities: MIDI velocities of several recordings, if known; by default the space's.
            progress: called with the match so far after every step.

        Returns:
            The match. An interrupt (Ctrl-C, *interrupt kernel*, `KeyboardInterrupt` raised by `progress`) ends the
            search early and keeps what was found; it passes through only before the first candidates are ranked.
        """
        sounds = [audio] if isinstance(audio, np.ndarray) else list(audio)
        match = Match(self.begin(sounds, velocities, guidance), seed)
        return self.go_on(match, seconds, renders, moves, progress)

    def begin(
        self, sounds: list[np.ndarray], velocities: Sequence[int] | None = None, guidance: float | None = None
    ) -> State:
        """What a search of these sounds starts from. Raises what `prepare_target` does, and `ValueError`."""
        if not sounds or (velocities is not None and len(velocities) != len(sounds)):
            raise ValueError(
                f"{len(sounds)} recordings and velocities {velocities}; give one velocity for each"
            )
        recordings: list[Recording] = []
        for sound, velocity in zip(sounds, velocities or [None] * len(sounds)):
            target = self.prepare_target(sound)
            distance = HeardDistance(target)
            first = recordings[0] if recordings else None
            pitch = (first.distance if first else distance).pitch
            press = Press(pitch and pitch.key, velocity=velocity)
            if first:
                both = first.distance.pitch and distance.pitch
                above = distance.pitch.key - pitch.key if both else 0
                longer = _length(target) - _length(first.audio)
                press = Press(press.key, above, longer, velocity)
            recordings.append(Recording(target, distance, press))
        return State(self.model, self.player, recordings, guidance)

    def go_on(
        self,
        match: Match,
        seconds: float = 30.0,
        renders: int | None = None,
        moves: Iterable[str] = MOVES,
        progress: Callable[[Match], None] | None = None,
    ) -> Match:
        """Search further, for so many more seconds or renders; see `match`, also for an interrupt. Returns `match`."""
        moves = list(moves)
        unknown = [name for name in moves if name not in MOVES]
        least = 0 if len(match.state.population) else 1
        if match.seed < 0 or seconds < 0 or unknown or (renders is not None and renders < least):
            raise ValueError(
                f"seed is {match.seed}, seconds {seconds}, renders {renders}, moves {unknown or 'known'}; "
                f"give 0 or more, at first 1 render or more, and moves among {', '.join(MOVES)}"
            )
        state, population, start = match.state, match.state.population, time.perf_counter()
        before, played = match.seconds, state.renders
        rng = np.random.default_rng([match.seed, played])

        def left() -> int:
            """How many vectors may be played at once."""
            if renders is not None:
                return max(0, renders - (state.renders - played)) // len(state.recordings)
            return 0 if time.perf_counter() - start >= seconds and len(population) else BATCH

        def use(move: Callable, origin: str, count: int) -> float | None:
            """Play what a move proposes. Returns its points; None if that was nothing new."""
            room = min(count, left())
            vectors = population.new(move(state, room, rng)[: left()]) if room else state.nothing
            if not len(vectors):
                return None
            best = population[0].distance if len(population) else np.inf
            eighth = population[TOP - 1].distance if len(population) >= TOP else np.inf
            found = state.play(vectors, origin)
            match.history.append(
                (before + time.perf_counter() - start, state.renders, population[0].distance)
            )
            if progress:
                progress(match)
            return sum((c.distance < eighth) + 3.0 * (c.distance < best) for c in found)

        try:
            if not population:
                first = library if self.model.library is not None else noise
                use(first, first.__name__, FIRST)
                use(tune, "tune", FIRST)
            unit = "seconds" if renders is None else "renders"
            if match.credit is None or (match.credit.names, match.credit.unit) != (moves, unit):
                match.credit = Credit(moves, unit)
            idle = turns = 0
            while moves and left() and idle < STUCK:
                turns += 1
                batch = min(max(SMALL, state.renders // 16), BATCH)
                if turns % MOVED == 0:
                    use(tune, "tune", batch)
                state.keep_key()
                name = match.credit.choose(rng)
                if "edit" in moves and state.renders < FIRST_EDITS:
                    name = "edit"
                since, done = time.perf_counter(), state.renders
                points = use(MOVES[name], name, batch)
                idle = idle + 1 if points is None else 0
                cost = time.perf_counter() - since if renders is None else state.renders - done
                match.credit.earn(name, points, cost)
        except KeyboardInterrupt:
            if not len(population):
                raise KeyboardInterrupt("before the first candidates were ranked") from None
        return match

    def vary(
        self,
        match: Match,
        candidate: Candidate | None = None,
        strength: float = 0.3,
        count: int = 6,
        seed: int = 0,
    ) -> list[Candidate]:
        """Others around a candidate (default: the best), for the ear to choose from; `match` stays as it is.

        Args:
            strength: above 0, at most 1: how many parameters change, and how far.

        Returns:
            `count` candidates, not ranked, with their distances to the target. Raises `ValueError`.
        """
        if not 0 < strength <= 1 or count < 1:
            raise ValueError(f"strength is {strength} and count {count}; give above 0 up to 1, and 1 or more")
        state, rng = match.state, np.random.default_rng([match.seed, seed])
        vectors, played = varied(state, (candidate or match.best).vector, strength, count, rng), state.renders
        found = state.rank(vectors, "varied")
        state.renders = played  # which a search goes on from
        return found

    def load(self, path: str | Path) -> Match:
        """A match that `Match.keep` wrote, to look at or to go on with. Raises `MatchError`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about, kept = json.loads(str(file["about"])), {name: file[name] for name in file.files}
            if about["space"] != self.space.text:
                raise MatchError(f"{path} was searched with another space than '{self.space.name}' is now")
            state = self.begin(list(kept["recordings"]), about["velocities"], about["guidance"])
            vectors = state.population.new(kept["vectors"].astype(np.float32))  # not to be asked about again
            for vector, distance, origin in zip(vectors, kept["distances"], about["origins"], strict=True):
                state.population.add(state.candidate(vector, float(distance), origin))
            state.renders, state.looked_up = int(about["renders"]), int(about["looked_up"])
            history = [(float(a), int(b), float(c)) for a, b, c in kept["history"]]
            match = Match(state, int(about["seed"]), history)
            match.best, match.history[-1]
        except (MatchError, SynthError):
            raise
        except OSError as error:
            raise MatchError(f"{path} can't be read: {error.strerror or error}") from error
        except DAMAGED as error:
            raise MatchError(f"{path} is no match, or damaged") from error
        return match


def _length(audio: np.ndarray) -> float:
    """Seconds until a note's level has fallen for good to 20 dB below its loudest 25 ms."""
    frame = SAMPLE_RATE // 40
    power = (
        np.square(audio[:, : audio.shape[1] // frame * frame]).reshape(len(audio), -1, frame).sum(axis=(0, 2))
    )
    return float(np.flatnonzero(power > power.max() / 100)[-1] + 1) * frame / SAMPLE_RATE
