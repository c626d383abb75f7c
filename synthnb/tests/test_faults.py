"""What a dataset survives: `make test-faults` prints the table.

Every fault ends in the same question: does the folder, after the same command again, hold the arrays of a run that
nothing disturbed?
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from synthnb.data import generate as generating
from synthnb.data.generate import generate
from synthnb.data.shards import DatasetError, open_split
from synthnb.synths import SynthCrash
from synthnb.synths.host import Host
from synthnb.tests.test_generate import REPOSITORY, contents

SIZES = {"train": 84, "val": 8, "test": 8, "shard_size": 10, "edits": 1}

table = []


@pytest.fixture(scope="module", autouse=True)
def printed():
    yield
    if table:
        print("\n\n" + "\n".join(f"{fault:44} {what}" for fault, what in table))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, short_space):
    """The arrays of 84 + 8 + 8 clips in ten shards."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return contents(generate(folder, short_space, **SIZES, workers=1, progress=False))


class Contained:
    """`Dangerous` at a safe distance, as plugins are."""

    channels = 1

    def __init__(self, marks: Path):
        self.host = Host("synthnb.tests.dangerous:Dangerous", str(marks), name="Dangerous")

    def render(self, patch, note, seconds):
        return self.host.call("render", patch, note, seconds, timeout=2)


@pytest.fixture
def contained(tmp_path, short_space, monkeypatch):
    """A folder for marks; datasets made by one worker are now played by `Contained`."""
    marks = tmp_path / "marks"
    marks.mkdir()
    synth = Contained(marks)
    monkeypatch.setattr(generating, "open_space", lambda text: (short_space, synth))
    yield marks, synth
    synth.host.close()


def skipped_in(folder: Path) -> list:
    found = []
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path) as file:
            found += json.loads(file.attrs["skipped"])
    return found


def algorithm_of(undisturbed, space) -> str:
    """The algorithm of one of the first clips."""
    vectors = np.frombuffer(undisturbed["shard-00000.h5", "param_array"], np.float32).reshape(-1, space.width)
    return space.decode(vectors[3])[0]["algorithm"]


@pytest.mark.parametrize("fault", ["segfault", "hang"])
def test_a_patch_that_fails_once_is_played_again(tmp_path, short_space, undisturbed, contained, fault):
    marks, _ = contained
    (marks / f"{fault}-once").write_text(algorithm_of(undisturbed, short_space))
    folder = generate(tmp_path / "data", short_space, **SIZES, workers=1, progress=False)
    assert not list(marks.iterdir())  # it struck
    assert contents(folder) == undisturbed and skipped_in(folder) == []
    table.append((f"a {fault} of the synth", "played again in a fresh process; arrays equal"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["segfault", "hang"])
def test_a_patch_that_always_fails_is_skipped_and_noted(tmp_path, short_space, undisturbed, contained, fault):
    marks, _ = contained
    bad = algorithm_of(undisturbed, short_space)
    (marks / f"{fault}-always").write_text(bad)
    sizes = SIZES | {"train": 2, "val": 10, "test": 8}
    sizes = SIZES if fault == "segfault" else sizes  # a hang costs four seconds
    folder = generate(tmp_path / "data", short_space, **sizes, workers=1, progress=False)
    noted = skipped_in(folder)
    kept = 0
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path) as file:
            vectors = file["param_array"][:]
        before = np.frombuffer(undisturbed[path.name, "param_array"], np.float32).reshape(
            -1, short_space.width
        )
        kept += sum(np.array_equal(a, b) for a, b in zip(before, vectors))
        assert all(short_space.decode(vector)[0]["algorithm"] != bad for vector in vectors)
    assert len(noted) > 0 and 0 < kept < 100
    cause = "SIGSEGV" if fault == "segfault" else "did not answer"
    assert all(cause in message for _, _, message in noted)
    table.append((f"a {fault} at each try", f"{len(noted)} patches noted and drawn again"))


@pytest.mark.slow
def test_a_synth_that_leaks_is_replaced(tmp_path, short_space, undisturbed, contained):
    marks, synth = contained
    (marks / "leak").touch()
    synth.host.memory = 600 << 20
    pids = set()
    render = synth.render

    def watched(*arguments):
        sound = render(*arguments)
        pids.add(synth.host.pid)
        return sound

    synth.render = watched
    folder = generate(tmp_path / "data", short_space, **SIZES, workers=1, progress=False)
    assert contents(folder) == undisturbed
    assert len(pids - {None}) > 2
    table.append(
        ("a leak of 32 MB a note", f"{len(pids - {None})} processes one after another; arrays equal")
    )


def test_a_crash_says_whether_it_came_from_outside(contained, patches):
    marks, synth = contained
    patch, note = patches[0]
    synth.render(patch, note, 0.5)
    os.kill(synth.host.pid, signal.SIGKILL)
    with pytest.raises(SynthCrash) as caught:
        synth.render(patch, note, 0.5)
    assert caught.value.killed
    (marks / "segfault-once").write_text(patch["algorithm"])
    with pytest.raises(SynthCrash) as caught:
        synth.render(patch, note, 0.5)
    assert not caught.value.killed


def test_a_truncated_shard_is_made_again(tmp_path, short_space, undisturbed):
    folder = generate(tmp_path / "data", short_space, **SIZES, workers=1, progress=False)
    path = folder / "shard-00003.h5"
    os.truncate(path, path.stat().st_size // 2)
    generate(folder, short_space, **SIZES, workers=1, progress=False)
    assert contents(folder) == undisturbed
    table.append(("a truncated shard", "the same command makes it again; arrays equal"))


def test_a_flipped_bit_is_noticed_where_it_is_read(tmp_path, short_space, undisturbed):
    folder = generate(tmp_path / "data", short_space, **SIZES, workers=1, progress=False)
    path = folder / "shard-00003.h5"
    with h5py.File(path) as file:
        at = file["audio"].id.get_chunk_info(5).byte_offset + 1000
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with h5py.File(path) as file, pytest.raises(OSError):
        file["audio"][:]
    path.unlink()
    generate(folder, short_space, **SIZES, workers=1, progress=False)
    assert contents(folder) == undisturbed
    table.append(("a flipped bit", "reading says so; without that shard, made again; arrays equal"))


def test_parts_rendered_apart_are_the_whole(tmp_path, short_space, undisturbed):
    """Two machines fill two folders, whose shards are then put together."""
    whole = tmp_path / "whole"
    whole.mkdir()
    for k in (2, 1):
        folder = generate(tmp_path / str(k), short_space, **SIZES, workers=1, progress=False, part=(k, 2))
        assert len(list(folder.iterdir())) == 5  # shards, and nothing that others depend on
        for path in folder.iterdir():
            shutil.copy(path, whole)
    generate(whole, short_space, **SIZES, workers=1, progress=False, part=(1, 2))
    assert contents(whole) == undisturbed
    with pytest.raises(DatasetError, match="part 3 of 2"):
        generate(whole, short_space, **SIZES, part=(3, 2))


def test_a_dask_cluster_makes_the_same(tmp_path, short_space, undisturbed):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as cluster:
        folder = generate(
            tmp_path / "data", short_space, **SIZES, workers=cluster.scheduler_address, progress=False
        )
    assert contents(folder) == undisturbed
    with open_split(folder / "train.h5") as file:
        assert len(file["audio"]) == 84
    with pytest.raises(DatasetError, match="no dask scheduler answers"):
        generate(tmp_path / "other", short_space, **SIZES, workers="tcp://127.0.0.1:1", progress=False)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, short_space, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("a small disk can't be mounted here (it takes root)")
    try:
        with pytest.raises(DatasetError, match="full"):
            generate(disk / "data", short_space, **SIZES, workers=1, progress=False)
        whole = sorted((disk / "data").iterdir())
        assert whole and all(path.suffix == ".h5" for path in whole)  # complete shards, no rest of the last
        for path in whole:
            with h5py.File(path) as file:
                assert all(file[name][:].tobytes() == undisturbed[path.name, name] for name in file)
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        generate(disk / "data", short_space, **SIZES, workers=1, progress=False)
        assert contents(disk / "data") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)
    table.append(("a full disk", f"{len(whole)} shards stay; with more room, arrays equal"))


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The joblib workers of a run; none if it has just ended."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):  # that one has just ended
                found += [child] * ("loky" in " ".join(child.cmdline()))
    return found


SCRIPT = """
import sys
from synthnb.data import generate as generating
from synthnb.data.generate import generate
from synthnb.space import ParameterSpace

print("ready", flush=True)
generate(sys.argv[1], ParameterSpace.load(sys.argv[2]), 2000, 100, 100, shard_size=20, workers=2, progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "killpg"), reason="kills a process group, which this system does not have"
)
def test_a_hundred_kills_leave_no_trace(tmp_path, short_space):
    """SIGKILL at random moments, of a worker or of the parent with all it started; then the arrays are the same."""
    path = tmp_path / "short.yaml"
    path.write_text(short_space.text)
    sizes = {"train": 2000, "val": 100, "test": 100, "shard_size": 20}
    one = generate(tmp_path / "undisturbed", short_space, **sizes, workers=2, progress=False)
    folder, rng, kills, process = tmp_path / "killed", random.Random(0), {"worker": 0, "parent": 0}, None
    give_up = time.monotonic() + 900

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, path], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        return process

    try:
        while sum(kills.values()) < 100:
            assert time.monotonic() < give_up, kills
            if process is None or process.poll() is not None:
                if process is not None and (folder / "stats.npz").is_file():
                    for shard in sorted(folder.glob("shard-*.h5"))[::2]:  # more to do, more to kill
                        shard.unlink()
                process = start()
            time.sleep(rng.uniform(0.2, 2.5))
            workers = workers_of(process)
            if rng.random() < 0.3:
                os.killpg(process.pid, signal.SIGKILL)
                kills["parent"] += 1
                process.wait()
                for worker in workers:
                    worker.kill()
                process = None
            elif workers:
                rng.choice(workers).kill()
                kills["worker"] += 1
    finally:
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    time.sleep(0.5)
    left = len(list(folder.glob("shard-*.h5")))
    generate(folder, short_space, **sizes, workers=2, progress=False)
    assert contents(folder) == contents(one)
    what = f"{kills['worker']} of workers, {kills['parent']} of the whole run; arrays equal"
    table.append(("100 kills", f"{what}; {left} of 110 shards were there"))
