"""Damage the files that people hand around, read them, and count: no traceback, no crash, no hang, no gigabyte.

    python -m synthnb.tools.fuzz --seconds 600 --only space
    python -m synthnb.tools.fuzz --replay FOLDER/space/17-surge_simple.yaml

Every input follows from seed, kind and number. Exit code 1 if any is neither accepted nor refused by an exception of
the project's own; those inputs are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil

from synthnb.data.shards import DatasetError
from synthnb.models.checkpoint import CheckpointError
from synthnb.sound import UnusableSound
from synthnb.space import SpaceError
from synthnb.synths import PresetError, SynthCrash, SynthError
from synthnb.synths.host import Host
from synthnb.tools.inputs import KINDS

CLEAN = (CheckpointError, DatasetError, PresetError, SpaceError, SynthError, UnusableSound)
OUTCOMES = ("accepted", "clean error", "traceback", "crash", "hang", "memory")
MEMORY = 1 << 30  # bytes of addresses that reading may take
PATIENCE = 30.0  # seconds that reading may take
FAULTS = ("flip", "cut", "end", "insert", "double", "zero", "word", "word", "word")
WORD = re.compile(rb"[\w.+-]+")
#: What is written in place of a word: numbers, types and structures that nobody expects there.
STRANGE = (
    *rb"-1 0 30000 1000000 1000000000 1e400 .nan NaN null true x [] {} ' [1,[2]] {a:1} 2020-13-45 *a".split(),
    *(
        b"",
        b'"',
        b"\xff\xfe",
        b"9" * 5000,
        b"0x" + b"f" * 9000,
        b"[" * 20_000,
        b"{a: " * 2000,
        b"y" * 100_000,
    ),
)
#: The same for an attribute or a field of an HDF5 file.
VALUES = (-1, 10**18, np.nan, "", "x", b"\xff", [1, 2], np.zeros((0, 3)), np.zeros((16, 5), np.float16))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three faults, more often near the beginning, where headers are."""
    for fault in rng.choice(FAULTS, rng.integers(1, 4)).tolist():
        at, size = int(len(data) * rng.random() ** 3), int(2 ** rng.uniform(0, 12))
        before, part, after = data[:at], data[at : at + size], data[at + size :]
        if fault == "word":
            if word := WORD.search(data, at, at + 10_000):
                before, part, after = (
                    data[: word.start()],
                    STRANGE[rng.integers(len(STRANGE))],
                    data[word.end() :],
                )
                if rng.random() < 0.3:  # of the same length, for what counts bytes
                    part = part[: len(word[0])].ljust(len(word[0]))
        elif fault == "end":
            part = after = b""
        else:
            flipped = bytes([part[0] ^ 1 << rng.integers(8)]) + part[1:] if part else b""
            new = {"flip": flipped, "cut": b"", "insert": rng.bytes(size) + part, "double": 2 * part}
            part = new.get(fault, bytes(len(part)))
        data = before + part + after
    return data


def damage_inside(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage what a header's lengths or a checksum guard, and make these right again; of other files, anything."""
    if data[:4] == b"CcnK":  # a Surge preset
        text = damage(data[92:], rng)
        whole, size = struct.pack(">I", 32 + len(text)), struct.pack("<I", len(text))
        return data[:56] + whole + data[60:64] + size + data[68:92] + text
    if data[:2] == b"\xf0\x43":  # DX7 voices
        voices = damage(data[6:-2], rng)[: len(data) - 8].ljust(len(data) - 8)
        return data[:6] + voices + bytes([-sum(voices) & 0x7F, 0xF7])
    if data[8:9] == b"{":  # a checkpoint
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        held = header["__metadata__"]
        key = rng.choice(sorted(held))
        held[key] = damage(held[key].encode(), rng).decode(errors="replace")
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    return damage(data, rng)


def damage_hdf5(path: Path, rng: np.random.Generator) -> None:
    """Remove an attribute or a field, or put something else there."""
    with h5py.File(path, "r+") as file:
        place = file.attrs if rng.random() < 0.6 else file
        name = sorted(place)[rng.integers(len(place))]
        del place[name]
        if rng.random() < 0.8:
            place[name] = VALUES[rng.integers(len(VALUES))]


def vary(whole: Path, to: Path, rng: np.random.Generator) -> None:
    """A damaged copy of an input; of a folder, one of its files is damaged."""
    if whole.is_dir():
        shutil.copytree(whole, to)
        files = sorted(path for path in to.iterdir() if path.suffix in (".h5", ".npz"))
        whole = to = files[rng.integers(len(files))]
    if to.suffix == ".h5" and rng.random() < 0.5:
        damage_hdf5(to, rng)
    else:
        to.write_bytes((damage_inside if rng.random() < 0.5 else damage)(whole.read_bytes(), rng))


class Reader:
    """Reads inputs, in a process of its own: a whole one of each kind first, to import and compile, then any."""

    def __init__(self, whole: dict[str, list[Path]]):
        for kind, paths in whole.items():
            KINDS[kind][1](paths[0])
        process = psutil.Process()
        if hasattr(process, "rlimit"):  # Linux
            most = process.rlimit(psutil.RLIMIT_AS)[1]
            process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + MEMORY, most))

    def read(self, kind: str, path: Path) -> tuple[str, str]:
        """What reading came to, one of `OUTCOMES`, and what was said."""
        said, chain = io.StringIO(), []
        try:
            with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
                KINDS[kind][1](path)
        except Exception as error:
            chain.append(error)
        while chain and (before := chain[-1].__cause__ or chain[-1].__context__):
            chain.append(before)
        if any(isinstance(error, MemoryError) or "alloc" in str(error) for error in chain):
            return "memory", _place(chain[0])
        if chain and not isinstance(chain[0], CLEAN):
            return "traceback", _place(chain[0])
        if "Traceback" in said.getvalue():
            return "traceback", f"printed: {said.getvalue().strip().splitlines()[-1]}"
        return ("clean error", str(chain[0])) if chain else ("accepted", "")


def _place(error: Exception) -> str:
    """The line of the package that an error came from."""
    *_, own = (frame for frame in traceback.extract_tb(error.__traceback__) if "synthnb" in frame.filename)
    return f"{type(error).__name__} in {Path(own.filename).name}:{own.lineno}"


def fuzz(
    kinds: list[str],
    seconds: float,
    seed: int,
    folder: Path,
    most: float = math.inf,
    workers: int | None = None,
) -> tuple[pd.DataFrame, dict[str, list[Path]]]:
    """Damage and read for so many `seconds`, or `most` inputs of a kind.

    Returns how many inputs of each kind came to what, and those that failed, kept in `folder`, by what happened.
    """
    whole, counts, failed = {}, pd.DataFrame(0, kinds, OUTCOMES), {}
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        (made := folder / "whole" / kind).mkdir(parents=True)
        whole[kind] = KINDS[kind][0](made)
    hosts = [
        Host("synthnb.tools.fuzz:Reader", whole, name="reading") for _ in range(workers or os.cpu_count())
    ]

    def one(host: Host, kind: str, number: int) -> None:
        rng, source = (
            np.random.default_rng([seed, *kind.encode(), number]),
            whole[kind][number % len(whole[kind])],
        )
        vary(source, path := folder / kind / f"{number}-{source.name}", rng)
        try:
            outcome, said = host.call("read", kind, path, timeout=PATIENCE)
        except SynthCrash as error:
            said = str(error)
            outcome = "hang" if "did not answer" in said else "memory" if "alloc" in said else "crash"
        counts.loc[kind, outcome] += 1
        if outcome not in OUTCOMES[:2]:
            failed.setdefault(f"{kind}, {outcome}: {said}", []).append(path)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def many(host: Host, kind: str, numbers: itertools.count, end: float) -> None:
        while (number := next(numbers)) < most and time.monotonic() < end:
            one(host, kind, number)

    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: host.call("read", kinds[0], whole[kinds[0]][0]), hosts))  # starts them
        for kind in kinds:
            end = itertools.repeat(time.monotonic() + seconds / len(kinds))
            list(pool.map(many, hosts, itertools.repeat(kind), itertools.repeat(itertools.count()), end))
            print(counts.loc[[kind]].to_string(header=kind == kinds[0]), flush=True)
    for host in hosts:
        host.close()
    return counts, failed


def main(argv: list[str] | None = None) -> int:
    """Run by hand or by `make test-fuzz`; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="of reading (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the damages (0)")
    parser.add_argument("--only", choices=KINDS, help="kind of input (all)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read an input that was kept")
    arguments = parser.parse_args(argv)
    if arguments.replay:
        path = arguments.replay.resolve()
        print(KINDS[path.parent.name][1](path))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="synthnb-fuzz-"))
    kinds = [arguments.only] if arguments.only else list(KINDS)
    _, failed = fuzz(kinds, arguments.seconds, arguments.seed, folder)
    for said, paths in sorted(failed.items()):
        print(f"{len(paths)} x {said}\n    {min(paths, key=lambda path: path.stat().st_size)}")
    if not failed:
        shutil.rmtree(folder)
        return 0
    print(f"{sum(map(len, failed.values()))} failed; they are kept in {folder}, for --replay")
    return 1


if __name__ == "__main__":
    sys.exit(main())
