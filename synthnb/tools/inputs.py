"""What people hand around, for `fuzz`: small whole files of every kind, and how each is read."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from synthnb.data.check import check
from synthnb.data.feed import ClipData
from synthnb.data.generate import generate
from synthnb.data.shards import SPLITS, DatasetError, open_split, read_space
from synthnb.models.checkpoint import CHECKPOINTS, load_model, read_record
from synthnb.sound import prepare, read_sound
from synthnb.space import SPACES, ParameterSpace
from synthnb.synths.dexed import BANK_HEADER, VOICE_HEADER, Dexed
from synthnb.synths.surge.patch import CLASS_ID, read_chunk
from synthnb.synths.vst3 import preset_file

SOUNDS = "WAV PCM_16,WAV FLOAT,WAV IMA_ADPCM,RF64 PCM_24,AIFF PCM_16,FLAC PCM_16,OGG VORBIS,OGG OPUS,MP3 MPEG_LAYER_III"
XML = (
    b'<?xml version="1.0" encoding="UTF-8"?><patch revision="24"><meta name="a" category="b" author="c"/><parameters>'
    b'<scenemode type="0" value="0"/><volume type="2" value="-2.9" deactivated="0"/><a_pitch type="2" value="0.5">'
    b'<modrouting source="17" depth="1.5" muted="0" source_index="0"/></a_pitch></parameters>'
    b'<customcontroller><entry i="0" v="0.5"/></customcontroller></patch>'
)


def make_sounds(folder: Path) -> list[Path]:
    """A short note in every format that libsndfile writes here."""
    time, paths = np.arange(4800) / 16_000, []
    note = np.stack([np.sin(1400 * time) * np.exp(-9 * time)] * 2, axis=1)
    for kind, subtype in (pair.split() for pair in SOUNDS.split(",")):
        if soundfile.check_format(kind, subtype):
            paths.append(folder / f"{subtype.lower()}.{kind.lower()}")
            soundfile.write(paths[-1], note, 16_000, format=kind, subtype=subtype)
    return paths


def make_banks(folder: Path) -> list[Path]:
    """A DX7 voice, and a bank of 32."""
    paths = [folder / "voice.syx", folder / "bank.syx"]
    for path, header, size in zip(paths, (VOICE_HEADER, BANK_HEADER), (155, 4096)):
        data = bytes(i * 7 % 128 for i in range(size))
        path.write_bytes(header + data + bytes([-sum(data) & 0x7F, 0xF7]))
    return paths


def make_presets(folder: Path) -> list[Path]:
    """A patch of Surge XT in both of its formats."""
    chunk = struct.pack("<4s7I", b"sub3", len(XML), *[0] * 6) + XML
    header = struct.pack(">4sI4sI4sII28sI", b"CcnK", 0, b"FPCh", 1, b"cjs3", 1, 1, b"a", len(chunk))
    paths = [folder / "patch.fxp", folder / "patch.vstpreset"]
    paths[0].write_bytes(header + chunk)
    paths[1].write_bytes(preset_file(CLASS_ID, chunk))
    return paths


def make_checkpoints(folder: Path) -> list[Path]:
    """The smallest one that comes with the package."""
    smallest = min(CHECKPOINTS.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    return [Path(shutil.copy(smallest, folder))]


def make_spaces(folder: Path) -> list[Path]:
    """Two that come with the package."""
    return [Path(shutil.copy(SPACES / f"{name}.yaml", folder)) for name in ("dexed_uniform", "surge_simple")]


def make_datasets(folder: Path) -> list[Path]:
    """A few clips of half a second, in two shards."""
    space = replace(ParameterSpace.load("dexed_uniform"), seconds=0.5)
    return [generate(folder / "clips", space, 8, 4, 4, shard_size=10, workers=1, progress=False)]


def read_bank(path: Path) -> None:
    """Every voice is one of the space, and plays."""
    space, synth = ParameterSpace.load("dexed_uniform"), Dexed()
    for _, patch in synth.load_bank(path):
        space.check(patch)
        synth.render(patch, space.note({"pitch": 60, "start": 0, "end": 0.05}), 0.1)


def read_checkpoint(path: Path) -> None:
    """What `synthnb info` reads."""
    load_model(path).description()
    read_record(path)


def read_one_space(path: Path) -> None:
    """All that a space can do without a synth."""
    space, rng = ParameterSpace.load(path), np.random.default_rng(0)
    vector = space.encode(*space.sample(rng))
    patch, note = space.decode(space.from_quantiles(space.to_quantiles(vector)))
    space.interchangeable_in(patch)
    space.encode(patch, note), space.describe(), space.moments()
    if ParameterSpace.parse(replace(space).text) != space:
        raise AssertionError("the text that is written of it is another space")


def read_dataset(path: Path) -> None:
    """Check it, and begin to feed it to a training."""
    problems = check(path)
    for split in SPLITS:
        with open_split(path / f"{split}.h5") as file:
            read_space(file)
    data = ClipData(path, batch_size=2)
    next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    if problems:
        raise DatasetError(problems[0])


#: What makes whole inputs of a kind in a folder, and what reads one.
KINDS: dict[str, tuple[Callable[[Path], list[Path]], Callable[[Path], object]]] = {
    "sound": (make_sounds, lambda path: prepare(read_sound(path))),
    "syx": (make_banks, read_bank),
    "fxp": (make_presets, read_chunk),
    "checkpoint": (make_checkpoints, read_checkpoint),
    "space": (make_spaces, read_one_space),
    "dataset": (make_datasets, read_dataset),
}
