"""The command line: a thin layer over the calls that the notebooks make. `synthnb --help` lists the commands.

What can be mended by the reader (an unusable sound, a missing checkpoint, …) is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import pandas as pd


def parser() -> argparse.ArgumentParser:
    """All commands and their options; each command's function is its `run`."""
    top = argparse.ArgumentParser(prog="synthnb", description="Sound in, synth patch out.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=function)
        return added

    c = command(match, "match", "find a preset that sounds like a recording")
    c.add_argument("sound", type=Path, help="wav, flac, mp3, ogg or aiff; its first note is matched")
    c.add_argument("--out", type=Path, required=True, help="folder for preset, sounds, picture and numbers")
    c.add_argument("--model", default="dexed", help="checkpoint: a name, or the path of a .safetensors file")
    c.add_argument(
        "--candidates", type=_count, default=32, help="patches that are tried before refining (32)"
    )
    c.add_argument("--seconds", type=_seconds, default=30.0, help="time for refining the best of them (30)")
    c.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    c.add_argument("--name", help="of the preset (the sound's file name)")
    _add_workers(c)

    c = command(info, "info", "describe a checkpoint or a dataset: its space, its sizes, how it was made")
    c.add_argument(
        "what", help="a name such as dexed, the path of a .safetensors file, or a dataset's folder"
    )

    c = command(
        space, "space", "list the parameters of a space and their priors, or make one for a VST3 plugin"
    )
    c.add_argument("space", help="a space's name or .yaml file; with --out, a plugin's name or its .vst3")
    c.add_argument("--out", type=Path, help="listen to the plugin's parameters and write this .yaml file")
    c.add_argument("--seconds", type=float, default=2.0, help="with --out: length of a clip (2)")

    c = command(
        costs, "costs", "measure what rendering costs beside the synth's own time, and how well it repeats"
    )
    c.add_argument("space", help="a space's name or .yaml file")
    c.add_argument("--patches", type=_count, default=300, help="random patches (300)")
    c.add_argument("--seed", type=int, default=0, help="of the patches (0)")

    command(surge, "surge", "fetch Surge XT, check it and put it where plugins are")

    c = command(generate, "generate", "render a dataset, or go on with one that was interrupted")
    c.add_argument("folder", type=Path, help="where it goes")
    c.add_argument("--space", default="dexed", help="what patches are drawn from (dexed)")
    for split, clips in (("train", 1000), ("val", 100), ("test", 100)):
        c.add_argument(f"--{split}", type=int, default=clips, help=f"{split} clips ({clips})")
    c.add_argument("--edits", type=int, default=1, help="of every clip that is drawn, which follow it (1)")
    c.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    c.add_argument(
        "--keep", choices=("audio", "mel", "compact"), default="audio",
        help="audio and spectrogram (audio), the spectrogram, or what an encoder looks at: 2 %% of the size",
    )  # fmt: skip
    c.add_argument(
        "--scheduler", help="address of a dask scheduler (tcp://host:8786) whose workers render instead"
    )
    c.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="render the K-th of N parts only"
    )
    _add_workers(c)

    c = command(featurize, "featurize", "add a feature to a dataset, or go on with one that was interrupted")
    c.add_argument("folder", type=Path, help="the dataset; its shards are copied one after the other")
    c.add_argument("--feature", required=True, choices=("mel_spec", "music2latent"), help="which one")
    c.add_argument("--batch", type=_count, default=8, help="clips at once; fewer need less memory (8)")
    c.add_argument(
        "--weights", type=Path, help="music2latent.pt (what SYNTHNB_MUSIC2LATENT names, else downloaded)"
    )
    _add_workers(c)

    c = command(
        check, "check", "read a whole dataset and name what is wrong with it; exit code 1 if anything is"
    )
    c.add_argument("folder", type=Path, help="of the dataset")
    _add_space(c)

    c = command(subset, "subset", "make a smaller dataset over the shards of another, copying nothing")
    c.add_argument("folder", type=Path, help="of the dataset")
    c.add_argument("--clips", type=_count, required=True, help="for training; validation and test stay whole")
    c.add_argument("--out", type=Path, required=True, help="a new folder")
    c.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    _add_space(c)

    c = command(export, "export", "copy a dataset into the layout that synth-permutations reads")
    c.add_argument("folder", type=Path, help="of the dataset")
    c.add_argument("--out", type=Path, required=True, help="a new folder")

    c = command(fit, "fit", "fit a prior to patches that people made")
    c.add_argument(
        "banks", type=Path, nargs="+", metavar="PRESET", help="presets or banks; equal voices count once"
    )
    c.add_argument("--space", default="dexed_uniform", help="whose parameters they are (dexed_uniform)")
    c.add_argument("--out", type=Path, required=True, help="the .yaml file to write")
    c.add_argument("--name", required=True, help="of the new space")
    return top


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, default=-1, help="processes that render (all cores)")


def _part(text: str) -> tuple[int, int]:
    own, _, parts = text.partition("/")
    return int(own), int(parts)


def _add_space(command: argparse.ArgumentParser) -> None:
    command.add_argument("--space", help="of a dataset that doesn't say it: a space's name or .yaml file")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; 1 or more are needed")
    return number


def _seconds(text: str) -> float:
    if not (number := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time; 0 or more seconds are needed")
    return number


def match(arguments: argparse.Namespace) -> None:
    from synthnb import plots
    from synthnb.metrics import METRICS
    from synthnb.models.checkpoint import load_model
    from synthnb.search.matcher import Match, Matcher
    from synthnb.sound import prepare, read_sound

    audio = read_sound(arguments.sound)
    model = load_model(arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)  # if it cannot be, then before the work
    matcher = Matcher(model, arguments.workers)
    terminal = sys.stderr.isatty()

    def show(found: Match) -> None:
        seconds, renders, distance = found.history[-1]
        line = (
            f"{seconds:5.1f} s  {renders:6,} renders  distance {distance:.4f}  (Ctrl-C keeps the best so far)"
        )
        print(f"\r{line}", end="", file=sys.stderr, flush=True)

    found = matcher.match(
        prepare(audio, model.space.seconds),
        arguments.candidates,
        arguments.seconds,
        arguments.seed,
        show if terminal else None,
    )
    if terminal:
        print(file=sys.stderr)
    name = arguments.name or arguments.sound.stem
    paths = found.save(arguments.out, name)
    paths["picture"] = arguments.out / "match.png"
    plots.compare(found.target, found.audio(), name).savefig(paths["picture"])

    seconds, renders, _ = found.history[-1]
    rows = {"proposed": found.first, "refined": found.best}
    if found.best is found.first:
        del rows["refined"]
    rows = {kind: {"distance": c.distance, **found.metrics(c)} for kind, c in rows.items()}
    print(f"How close it came, with {renders:,} renders in {seconds:.0f} s:")
    print(pd.DataFrame(rows).T.to_string(float_format="{:.3f}".format))
    print(f"({', '.join(f'{metric} {better} is better' for metric, better in METRICS.items())})")
    print(f"The preset sounds like the recording at MIDI note {found.best.note.pitch}.")
    for kind, path in paths.items():
        print(f"{kind:8s} {path}")


def info(arguments: argparse.Namespace) -> None:
    from synthnb.data.check import describe
    from synthnb.models.checkpoint import checkpoint_path, load_model, read_record

    if any(Path(arguments.what).glob("*.h5")):
        print(*describe(arguments.what), sep="\n")
        return
    model = load_model(arguments.what)
    space, path = model.space, checkpoint_path(arguments.what)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {weights:,} weights")
    print(f"space '{space.name}' for {space.synth}: {len(space.parameters)} parameters, {space.seconds:g} s")
    print(f"settings: {json.dumps(model.description()['settings'])}")
    print("training record:")
    for name, value in read_record(path).items():
        text = json.dumps(value)
        print(f"  {name}: {text if len(text) <= 100 else f'{text[:60]} … {text[-30:]}'}")


def space(arguments: argparse.Namespace) -> None:
    from synthnb.space import ParameterSpace

    if arguments.out:
        from synthnb.synths.survey import survey

        found, table, measured = survey(arguments.space, arguments.seconds)
        print(table.round(2).to_string(index=False))
        print(
            f"the same patch twice: {measured['floor']:.2g} dB; silent random patches: {measured['silent']:.0%}"
        )
        arguments.out.write_text(found.text)
        print(
            f"{len(found.parameters)} parameters written to {arguments.out}; mend names, modules and priors there"
        )
        return
    found = ParameterSpace.load(arguments.space)
    print(f"space '{found.name}' for {found.synth}: {found.seconds:g} s, vectors of {found.width} numbers")
    print(found.describe().to_string(index=False))


def costs(arguments: argparse.Namespace) -> None:
    from synthnb.space import ParameterSpace
    from synthnb.tools.costs import costs, noise_floor

    found = ParameterSpace.load(arguments.space)
    print(costs(found, arguments.patches, arguments.seed).round(3).to_string())
    floor = noise_floor(found, min(arguments.patches, 50), arguments.seed)
    print(
        "the same patch twice:", floor.describe().loc[["mean", "50%", "max"]].round(4).to_string(), sep="\n"
    )


def surge(arguments: argparse.Namespace) -> None:
    from synthnb.synths.surge.release import install

    install()


def generate(arguments: argparse.Namespace) -> None:
    from synthnb.data.generate import generate
    from synthnb.space import ParameterSpace

    folder = generate(
        arguments.folder,
        ParameterSpace.load(arguments.space),
        arguments.train,
        arguments.val,
        arguments.test,
        seed=arguments.seed,
        keep=arguments.keep,
        edits=arguments.edits,
        workers=arguments.scheduler or arguments.workers,
        progress=sys.stderr.isatty(),
        part=arguments.part,
    )
    if not (folder / "stats.npz").is_file():
        print(
            f"{folder}: part {arguments.part[0]} of {arguments.part[1]} is rendered; others are still missing"
        )
        return
    print(f"{folder}: {arguments.train:,} train, {arguments.val:,} val and {arguments.test:,} test clips")


def featurize(arguments: argparse.Namespace) -> None:
    from synthnb.data.featurize import add_features

    folder = add_features(
        arguments.folder,
        arguments.feature,
        arguments.batch,
        weights=arguments.weights,
        workers=arguments.workers,
        progress=sys.stderr.isatty(),
    )
    print(f"{folder}: every clip has {arguments.feature}")


def check(arguments: argparse.Namespace) -> int:
    from synthnb.data.check import check, describe
    from synthnb.data.shards import DatasetError

    problems = check(arguments.folder, arguments.space)
    try:
        print(*describe(arguments.folder, arguments.space), sep="\n")
    except DatasetError:  # it is among the problems
        print(arguments.folder)
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(problems)} problems" if problems else "every clip was read: no problems")
    return int(bool(problems))


def subset(arguments: argparse.Namespace) -> None:
    from synthnb.data.layouts import write_subset

    a = arguments
    out = write_subset(a.folder, a.out, a.clips, a.seed, a.space)
    print(f"{out}: {a.clips:,} training clips of {a.folder}; the two can be moved together")


def export(arguments: argparse.Namespace) -> None:
    from synthnb.data.layouts import export

    print(f"{export(arguments.folder, arguments.out)}: dataset_root for synth-permutations' SurgeDataModule")


def fit(arguments: argparse.Namespace) -> None:
    from synthnb.space import ParameterSpace
    from synthnb.space.fit import fit_prior, write_space
    from synthnb.synths import PresetError, open_synth

    space = ParameterSpace.load(arguments.space)
    synth = open_synth(space)
    voices = []
    for bank in arguments.banks:
        with warnings.catch_warnings(action="ignore"):  # of what the space does not cover
            voices += [patch for _, patch in synth.load_bank(bank)]
    unique = list({tuple(patch.items()): patch for patch in voices}.values())
    try:
        text = fit_prior(space, unique, arguments.name)
    except ValueError as error:
        raise PresetError(str(error)) from error
    write_space(arguments.out, text)
    print(f"{arguments.out}: fitted to {len(unique):,} different voices of {len(voices):,}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's. Returns the exit code."""
    arguments = parser().parse_args(argv)
    from synthnb.data.shards import DatasetError  # after parsing, so that --help is quick
    from synthnb.features.latents import LatentsError
    from synthnb.models.checkpoint import CheckpointError
    from synthnb.sound import UnusableSound
    from synthnb.space import SpaceError
    from synthnb.synths import PresetError, SynthError

    try:
        return arguments.run(arguments) or 0
    except (
        CheckpointError,
        DatasetError,
        LatentsError,
        PresetError,
        SpaceError,
        SynthError,
        UnusableSound,
    ) as error:
        print(f"synthnb: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"synthnb: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsynthnb: interrupted", file=sys.stderr)
        return 130
