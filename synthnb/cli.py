"""The command line: a thin layer over the calls that the notebooks make. `synthnb --help` lists the commands.

What can be mended by the reader (an unusable sound, a missing checkpoint, …) is one line on stderr and exit code 2.
Only the standard library is imported before a command runs, so that `--help` is quick and an interrupt is one line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from synthnb import __version__
from synthnb.data import EDITS, KEEP, TEST, TRAIN, VAL

UPDATE = {True: 0.1, False: 5.0}  # seconds between two updates of progress, in a terminal and elsewhere
COMMANDS: list[tuple[Callable, str, tuple]] = []  # function, what it does, options


def command(text: str, *options: tuple[tuple, dict]) -> Callable:
    """Make a function a command, which is called with its options by name; what it returns is the exit code."""

    def add(function: Callable) -> Callable:
        COMMANDS.append((function, text, options))
        return function

    return add


def option(*names: str, **settings) -> tuple[tuple, dict]:
    """What `ArgumentParser.add_argument` takes."""
    return names, settings


def at_least(least: float) -> Callable[[str], float]:
    """A parser's type: a number, whole if `least` is, and not less than that."""

    def number(text: str) -> float:
        if not (found := type(least)(text)) >= least:  # nan is not
            raise argparse.ArgumentTypeError(f"{text} is too few; {least} or more are needed")
        return found

    return number


def part(text: str) -> tuple[int, int]:
    own, _, parts = text.partition("/")
    if not 1 <= int(own) <= int(parts):
        raise ValueError
    return int(own), int(parts)


DATASET = option("folder", type=Path, help="of the dataset")
NEW_FOLDER = option("--out", type=Path, required=True, help="a new folder")
KEPT = "sound and spectrogram (audio), the spectrogram alone, or what an encoder looks at of it: 2 %% of the size"
SEED = option("--seed", type=at_least(0), default=0, help="of all that is random (0)")
SPACE = option("--space", help="of a dataset that doesn't say it: a space's name or .yaml file")
WORKERS = option("--workers", type=at_least(1), default=-1, help="how many render at a time (all cores)")


@command(
    "find a preset that sounds like a recording",
    option("sound", type=Path, help="wav, flac, mp3, ogg or aiff; its first note is matched"),
    option("--out", type=Path, help="folder for preset, sounds, picture and numbers (outputs/SOUND)"),
    option("--model", default="dexed", help="checkpoint: a name, or the path of a .safetensors file (dexed)"),
    option("--seconds", type=at_least(0.0), default=30.0, help="time for the search (30)"),
    option("--more", type=Path, nargs="+", default=[], metavar="SOUND", help="other notes of the same sound"),
    option(
        "--continue", dest="go_on", action="store_true", help="go on with the match that is kept in --out"
    ),
    SEED,
    option("--name", help="of the preset (the sound's file name)"),
    WORKERS,
)
def match(sound, out, model, seconds, more, go_on, seed, name, workers) -> None:
    from synthnb import plots
    from synthnb.metrics import METRICS
    from synthnb.models.checkpoint import load_model
    from synthnb.search.files import output_paths
    from synthnb.search.match import Match
    from synthnb.search.matcher import Matcher, MatchError
    from synthnb.sound import prepare, read_sound

    audio = [read_sound(path) for path in (sound, *more)]
    matcher = Matcher(load_model(model), workers)
    out, name = out or Path("outputs", sound.stem), name or sound.stem
    for path in (*more, sound):  # what can't be written is said before the search
        paths = output_paths(out, name, matcher.synth, path)
    targets, shown = [prepare(each, matcher.space.seconds) for each in audio], 0.0

    def show(found: Match) -> None:
        nonlocal shown
        if time.monotonic() - shown > UPDATE[sys.stderr.isatty()]:
            shown = time.monotonic()
            passed, renders, distance = found.history[-1]
            line = f"{passed:5.1f} s  {renders:6,} renders  distance {distance:.4f}"
            print(f"\r{line}  (Ctrl-C keeps the best so far)", end="", file=sys.stderr, flush=True)

    if go_on:
        found = matcher.load(paths["search"])
        kept = [recording.audio.tobytes() for recording in found.state.recordings]
        if kept != [matcher.prepare_target(target).tobytes() for target in targets]:
            raise MatchError(f"{paths['search']} is of another sound; leave out --continue to begin anew")
        matcher.go_on(found, seconds, progress=show)
    else:
        found = matcher.match(targets, seconds, seed=seed, progress=show)
    print(file=sys.stderr)
    found.save(out, name, recording=sound)
    plots.compare(found.target, found.audio(), name).savefig(paths["picture"])

    passed, renders, _ = found.history[-1]
    print(f"How close the nearest came, of {renders:,} renders in {passed:.0f} s:")
    print(found.table(3).to_string(float_format="{:.2f}".format))
    print(f"({', '.join(f'{metric} {better} is better' for metric, better in METRICS.items())})")
    for kind, path in paths.items():
        print(f"{kind:8s} {path}")
    for number, step in enumerate([*matcher.synth.how_to_load, found.how_to_play()], 1):
        print(f"{number}. {step}")


@command(
    "describe a checkpoint or a dataset: its space, its sizes, how it was made",
    option("what", help="a name such as dexed, the path of a .safetensors file, or a dataset's folder"),
)
def info(what) -> None:
    from synthnb.data.describe import describe
    from synthnb.models.checkpoint import checkpoint_path, load_model, read_record

    if any(Path(what).glob("*.h5")):
        print(*describe(what), sep="\n")
        return
    model = load_model(what, "cpu")
    space, path = model.space, checkpoint_path(what)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {weights:,} weights")
    print(f"space '{space.name}' for {space.synth}: {len(space.parameters)} parameters, {space.seconds:g} s")
    print(f"settings: {json.dumps(model.description()['settings'])}")
    print("training record:")
    for name, value in read_record(path).items():
        text = json.dumps(value)
        print(f"  {name}: {text if len(text) <= 100 else f'{text[:60]} … {text[-30:]}'}")


@command(
    "list the parameters of a space and their priors, or make one for a VST3 plugin",
    option("space", help="a space's name or .yaml file; with --out, a plugin's name or its .vst3"),
    option("--out", type=Path, help="listen to the plugin's parameters and write this .yaml file"),
    option("--seconds", type=at_least(0.0), default=2.0, help="with --out: length of a clip (2)"),
)
def space(space, out, seconds) -> None:
    from synthnb.space import ParameterSpace
    from synthnb.space.fit import check_writable, write_space

    if not out:
        found = ParameterSpace.load(space)
        size = f"{found.seconds:g} s, vectors of {found.width} numbers"
        print(
            f"space '{found.name}' for {found.synth}: {size}",
            found.describe().to_string(index=False),
            sep="\n",
        )
        return
    check_writable(out)
    from synthnb.synths.survey import survey  # torch takes seconds

    found, table, measured = survey(space, seconds)
    write_space(out, found)
    print(table.round(2).to_string(index=False))
    print(
        f"the same patch twice: {measured['floor']:.2g} dB; silent random patches: {measured['silent']:.0%}"
    )
    print(f"{len(found.parameters)} parameters written to {out}; mend names, modules and priors there")


@command("fetch Surge XT, check it and put it where plugins are")
def surge() -> None:
    from synthnb.synths.surge.release import install

    install()


@command(
    "render a dataset, or go on with one that was interrupted",
    option("folder", type=Path, help="where it goes"),
    option("--space", default="dexed", help="what patches are drawn from (dexed)"),
    option("--train", type=at_least(0), default=TRAIN, help=f"train clips ({TRAIN})"),
    option("--val", type=at_least(0), default=VAL, help=f"val clips ({VAL})"),
    option("--test", type=at_least(0), default=TEST, help=f"test clips ({TEST})"),
    option(
        "--edits", type=at_least(0), default=EDITS, help=f"of every clip drawn, which follow it ({EDITS})"
    ),
    SEED,
    option("--keep", choices=KEEP, default=KEEP[0], help=KEPT),
    option("--scheduler", help="address of a dask scheduler (tcp://host:8786) whose workers render instead"),
    option("--part", type=part, default=(1, 1), metavar="K/N", help="render the K-th of N parts only"),
    WORKERS,
)
def generate(folder, space, train, val, test, edits, seed, keep, scheduler, part, workers) -> None:
    from synthnb.data.generate import generate
    from synthnb.space import ParameterSpace

    made = {"seed": seed, "keep": keep, "edits": edits, "workers": scheduler or workers, "part": part}
    folder = generate(folder, ParameterSpace.load(space), train, val, test, **made)
    if (folder / "stats.npz").is_file():
        print(f"{folder}: {train:,} train, {val:,} val and {test:,} test clips")
    else:
        print(f"{folder}: part {part[0]} of {part[1]} is rendered; others are still missing")


@command(
    "add a feature to a dataset, or go on with one that was interrupted",
    option("folder", type=Path, help="the dataset; its shards are copied one after the other"),
    option("--feature", required=True, choices=("mel_spec", "music2latent"), help="which one"),
    option("--batch", type=at_least(1), default=8, help="clips at once; fewer need less memory (8)"),
    option("--weights", type=Path, help="music2latent.pt (what SYNTHNB_MUSIC2LATENT names, else downloaded)"),
    WORKERS,
)
def featurize(folder, feature, batch, weights, workers) -> None:
    from synthnb.data.featurize import add_features

    made = add_features(folder, feature, batch, weights=weights, workers=workers)
    print(f"{made}: every clip has {feature}")


@command("read a whole dataset and name what is wrong with it; exit code 1 if anything is", DATASET, SPACE)
def check(folder, space) -> int:
    from synthnb.data.check import check
    from synthnb.data.describe import describe
    from synthnb.data.shards import DatasetError

    problems = check(folder, space)
    for problem in problems:
        print(f"PROBLEM {problem}")
    try:
        print(*describe(folder, space), sep="\n")
    except DatasetError:  # it is among the problems
        print(folder)
    print(f"{len(problems)} problems" if problems else "every clip was read: no problems")
    return int(bool(problems))


@command(
    "make a smaller dataset over the shards of another, copying nothing",
    DATASET,
    option("--clips", type=at_least(1), required=True, help="for training; validation and test stay whole"),
    NEW_FOLDER,
    SEED,
    SPACE,
)
def subset(folder, clips, out, seed, space) -> None:
    from synthnb.data.layouts import write_subset

    made = write_subset(folder, out, clips, seed, space)
    print(f"{made}: {clips:,} training clips of {folder}; the two can be moved together")


@command("copy a dataset into the layout that synth-permutations reads", DATASET, NEW_FOLDER)
def export(folder, out) -> None:
    from synthnb.data.layouts import export

    print(f"{export(folder, out)}: dataset_root for synth-permutations' SurgeDataModule")


@command(
    "fit a prior to patches that people made",
    option("banks", type=Path, nargs="+", metavar="PRESET", help="presets or banks; equal voices count once"),
    option("--space", default="dexed_uniform", help="whose parameters they are (dexed_uniform)"),
    option("--out", type=Path, required=True, help="the .yaml file to write"),
    option("--name", required=True, help="of the new space"),
)
def fit(banks, space, out, name) -> None:
    from synthnb.space import ParameterSpace
    from synthnb.space.fit import check_writable, fit_prior, write_space
    from synthnb.synths import PresetError, open_synth

    check_writable(out)
    prior = ParameterSpace.load(space)
    synth, voices = open_synth(prior), []
    for bank in banks:
        try:
            with warnings.catch_warnings(record=True, action="always") as problems:
                voices += [patch for _, patch in synth.load_bank(bank)]
            print(*(f"{problem.message}\n" for problem in problems), sep="", end="", file=sys.stderr)
        except (OSError, PresetError) as error:
            print(f"left out: {said(error)}", file=sys.stderr)
    unique = list({tuple(patch.items()): patch for patch in voices}.values())
    write_space(out, fit_prior(prior, unique, name))
    print(f"{out}: fitted to {len(unique):,} different voices of {len(voices):,}")


def said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}"
    return str(error)


class Lines:
    """Standard error where it is no terminal: every update of a progress bar is a line."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(text.replace("\r", "\n"))

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def parser() -> argparse.ArgumentParser:
    """All commands and their options; each command's function is its `run`."""
    top = argparse.ArgumentParser(prog="synthnb", description="Sound in, synth patch out.")
    top.add_argument("--version", action="version", version=f"synthnb {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for function, text, options in COMMANDS:
        added = commands.add_parser(function.__name__, help=text, description=text)
        added.set_defaults(run=function)
        for names, settings in options:
            added.add_argument(*names, **settings)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's. Returns the exit code."""
    arguments = vars(parser().parse_args(argv))
    terminal = sys.stderr.isatty()
    os.environ.setdefault("TQDM_MININTERVAL", str(UPDATE[terminal]))  # read when tqdm is imported
    with contextlib.redirect_stderr(sys.stderr if terminal else Lines(sys.stderr)):
        try:
            return arguments.pop("run")(**arguments) or 0
        except KeyboardInterrupt:
            print("\nsynthnb: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith("synthnb."):
                raise
            print(f"synthnb: {said(error)}", file=sys.stderr)
            return 2
