"""What a dataset survives: `make test-faults` prints the table.

Every fault ends in the same question: does the folder, after the same command again, hold the arrays of a run that
nothing disturbed?
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from synthnb.data import generate as generating
from synthnb.data.check import check
from synthnb.data.generate import generate
from synthnb.data.shards import SPLITS, DatasetError, open_split
from synthnb.synths import SynthCrash
from synthnb.synths.host import Host
from synthnb.tests.test_generate import contents

SIZES = {"train": 84, "val": 8, "test": 8, "shard_size": 10, "edits": 1}

table = []


def record(fault: str, what: str, lost: str = "nothing", arrays: str = "equal"):
    """Add a row to the table; `arrays` are compared to those of a run that nothing disturbed."""
    table.append((fault, what, lost, arrays))


@pytest.fixture(scope="module", autouse=True)
def printed():
    yield
    if table:
        rows = [("fault", "what happened", "lost", "arrays"), *table]
        widths = [max(map(len, column)) for column in zip(*rows)]
        print("\n")
        for row in rows:
            print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip())


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

    def ceiling(self, patch, note):
        return float("inf")

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
    record(f"a {fault} of the synth", "the patch was played again in a fresh process")


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
    record(
        f"a {fault} at each try", "noted in the shard; another patch was drawn",
        f"patches: {len(noted)}", f"{kept} of {sum(sizes[split] for split in SPLITS)} equal",
    )  # fmt: skip


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
    record("a leak of 32 MB a note", f"{len(pids - {None})} processes rendered one after another")


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
    record("a truncated shard", "the same command made it again")


def test_a_flipped_bit_is_noticed_by_a_check(tmp_path, short_space, undisturbed):
    folder = generate(tmp_path / "data", short_space, **SIZES, workers=1, progress=False)
    path = folder / "shard-00003.h5"
    with h5py.File(path) as file:
        at = file["audio"].id.get_offset() + 1000
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    (problem,) = check(folder)
    assert problem.startswith("shard-00003.h5: audio is damaged: its checksum is wrong")
    path.unlink()
    generate(folder, short_space, **SIZES, workers=1, progress=False)
    assert contents(folder) == undisturbed
    record("a flipped bit", "a check named the shard; once it was deleted, the same command made it again")


def test_parts_rendered_apart_are_the_whole(tmp_path, short_space, undisturbed):
    """Two machines fill two folders, whose shards are then put together."""
    whole = tmp_path / "whole"
    whole.mkdir()
    for k in (2, 1):
        folder = generate(tmp_path / str(k), short_space, **SIZES, workers=1, progress=False, part=(k, 2))
        assert len(list(folder.glob("shard-*"))) == 5 and not (folder / "stats.npz").exists()
        for path in folder.iterdir():
            shutil.copy(path, whole)
    generate(whole, short_space, **SIZES, workers=1, progress=False, part=(1, 2))
    assert contents(whole) == undisturbed
    with pytest.raises(DatasetError, match="part 3 of 2"):
        generate(whole, short_space, **SIZES, part=(3, 2))
    record("no fault: two parts", "two folders were rendered apart, and their shards put together")


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
    record("no fault: a dask cluster", "two of its workers rendered")


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
    record("a full disk", f"the run said so and ended; with more room it went on from {len(whole)} shards")


def workers_of(run: multiprocessing.Process) -> list[psutil.Process]:
    """The joblib workers of a run; none if it has just ended."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(run.pid).children():
            with contextlib.suppress(psutil.Error):  # that one has just ended
                found += [child] * ("popen_loky" in " ".join(child.cmdline()))
    return found


def kill(run: multiprocessing.Process) -> bool:
    """Kill a run and its workers; whether it was still going on."""
    workers = workers_of(run)
    run.kill()
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            worker.kill()
    run.join()
    time.sleep(0.2)  # its workers don't die at the same instant
    return run.exitcode == -signal.SIGKILL


def generate_logged(log: Path, *arguments, **settings):
    """`generate`, with what it and its workers have to say about their ends in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    tqdm.set_lock(threading.RLock())  # its own is seen by other processes, and a kill would leave it behind
    generate(*arguments, **settings)
    # As at the end of a program; multiprocessing would wait until idle workers give up.
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


@pytest.mark.slow
@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system can't fork processes"
)
def test_a_hundred_kills_leave_no_trace(tmp_path, short_space):
    """SIGKILL at random moments, of a worker or of the whole run, from its first shard to its stats.

    Some wait until there is one more shard, others may hit what has just been started. Whenever a run came to its end,
    the next one lacks every second shard. No run makes a shard again that was complete before it.
    """
    clips = {"train": 1960, "val": 20, "test": 20, "shard_size": 40, "edits": 1}
    undisturbed = contents(
        generate(tmp_path / "undisturbed", short_space, **clips, workers=1, progress=False)
    )
    folder, rng, give_up = tmp_path / "killed", random.Random(0), time.monotonic() + 900
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["synthnb.data.generate"])  # importing it takes seconds
    found, run, kills = [{}], None, {"worker": 0, "run": 0, "end": 0}

    def shards() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*.h5"))}

    while sum(kills.values()) < 100:
        assert time.monotonic() < give_up, kills
        if run is None or not run.is_alive():
            assert found[-1].items() <= shards().items()
            for path in [*shards()][::2] if (folder / "stats.npz").is_file() else []:
                path.unlink()
            found.append(shards())
            run = fork.Process(
                target=generate_logged, args=(tmp_path / "log", folder, short_space),
                kwargs=clips | {"workers": 2, "progress": False},
            )  # fmt: skip
            run.start()
        wanted = min(50, len(shards()) + (rng.random() < 0.3))
        while len(shards()) < wanted and run.is_alive() and time.monotonic() < give_up:
            time.sleep(0.01)
        at_end = len(shards()) == 50
        if at_end and rng.random() < 0.25:
            run.join()
            continue
        time.sleep(rng.uniform(0, 0.3 if at_end else 1.2))
        workers = workers_of(run)
        if at_end or rng.random() < 0.3:
            kills["end" if at_end else "run"] += kill(run)
        elif workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
                kills["worker"] += 1
    kill(run)
    generate(folder, short_space, **clips, workers=2, progress=False)
    assert found[-1].items() <= shards().items()
    assert contents(folder) == undisturbed
    assert not list(folder.glob("*.partial*")) and check(folder) == []
    runs, there = len(found) - 1, sum(map(len, found))
    record(
        "100 kills",
        f"{kills['worker']} of a worker, {kills['run'] + kills['end']} of the run ({kills['end']} at its end); "
        f"{runs} runs kept {there / runs:.0f} of 50 shards, on average",
    )
