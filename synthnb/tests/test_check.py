"""`check` names every kind of damage and is silent about a sound dataset; `describe` tells what a folder holds."""

import re
import shutil
import sys
import zlib

import h5py
import numpy as np
import pytest

from synthnb.cli import main
from synthnb.data.check import check
from synthnb.data.describe import describe
from synthnb.data.generate import generate
from synthnb.data.shards import DatasetError
from synthnb.data.splits import write_splits


def render(folder, space):
    return generate(folder, space, 12, 4, 4, shard_size=8, edits=1, workers=1, progress=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory, short_space):
    """12 + 4 + 4 clips of half a second, every second an edit, in shards of 8. Copy it before changing it."""
    return render(tmp_path_factory.mktemp("small") / "dataset", short_space)


@pytest.fixture
def mine(small, tmp_path):
    return shutil.copytree(small, tmp_path / "mine")


def change(folder, name, row, values, shard=1):
    with h5py.File(folder / f"shard-{shard:05d}.h5", "r+") as file:
        file[name][row] = values
        file[name].attrs["crc32"] = zlib.crc32(file[name][:])


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def copy_a_clip(folder):
    with h5py.File(folder / "shard-00000.h5") as file:
        change(folder, "param_array", 5, file["param_array"][2])


def change_attribute(folder):
    with h5py.File(folder / "shard-00002.h5", "r+") as file:
        file.attrs["seed"] = 1


def shorten(folder):
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        for name in list(file):
            rows = file[name][:7]
            del file[name]
            file[name] = rows  # without a checksum


def change_stats(folder):
    with np.load(folder / "stats.npz") as stats:
        np.savez(folder / "stats.npz", mean=stats["mean"], std=stats["std"] + 0.5)


def repeat_a_split(folder):
    (folder / "val.h5").unlink()
    shutil.copy(folder / "test.h5", folder / "val.h5")


def change_split(folder, name, value):
    with h5py.File(folder / "test.h5", "r+") as file:
        file.attrs[name] = value


def show_others(folder):
    """The spectrograms of the test split are those of the training clips behind it."""
    with h5py.File(folder / "test.h5", "r+") as file:
        shape = file["mel_spec"].shape
        del file["mel_spec"]
        layout = h5py.VirtualLayout(shape, np.float16)
        layout[:] = h5py.VirtualSource("shard-00001.h5", "mel_spec", (8, *shape[1:]), np.float16)[2:6]
        file.create_virtual_dataset("mel_spec", layout)


def without(folder, name):
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file[name]


def huge(folder):
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        del file["audio"]
        file.create_dataset("audio", (8, 1, 1 << 43), np.float16, chunks=(1, 1, 1024))


def recipes(folder, name, value):
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value


def break_links(folder):
    (folder / "shard-00001.h5").unlink()
    (folder / "shard-00001.h5").symlink_to("nowhere.h5")


DAMAGE = {
    "a truncated shard": (lambda f: cut(f, "shard-00001.h5"), r"shard-00001.h5: not readable, cut short or damaged"),
    "the first, truncated": (lambda f: cut(f, "shard-00000.h5"), r"shard-00000.h5: not readable, cut short"),
    "a truncated split": (lambda f: cut(f, "train.h5"), r"train.h5"),
    "a missing shard": (lambda f: (f / "shard-00001.h5").unlink(), r"shard-00001.h5: missing; run the same generate"),
    "a missing last shard": (lambda f: (f / "shard-00002.h5").unlink(), r"shard-00002.h5: missing"),
    "a missing split": (lambda f: (f / "test.h5").unlink(), r"test.h5: missing"),
    "no stats": (lambda f: (f / "stats.npz").unlink(), r"stats.npz: missing"),
    "half stats": (lambda f: cut(f, "stats.npz"), r"stats.npz: not readable"),
    "other stats": (change_stats, r"stats.npz: std is up to 0.5 dB from that of the training clips"),
    "a partial shard": (lambda f: (f / "shard-00003.partial-9").touch(), r"shard-00003.partial-9: left by an interr"),
    "NaN": (lambda f: change(f, "audio", 3, np.nan), r"shard-00001.h5: audio of clip 3 holds NaN"),
    "infinity": (lambda f: change(f, "mel_spec", 3, -np.inf), r"shard-00001.h5: mel_spec of clip 3 holds NaN or inf"),
    "positive decibels": (lambda f: change(f, "mel_spec", 4, 9), r"shard-00001.h5: mel_spec of clip 4 is outside"),
    "a parameter above 1": (lambda f: change(f, "param_array", 2, 1.5), r"00001.h5: param_array of clip 2 is outside"),
    "two choices": (lambda f: change(f, "param_array", 2, 1), r"00001.h5: param_array of clip 2 has not exactly one"),
    "a clip never written": (lambda f: change(f, "param_array", 6, 0), r"shard-00001.h5: .* clip 6 was never written"),
    "a clip twice": (copy_a_clip, r"1 clips have .*clip 2 of shard-00000.h5 and clip 5 of shard-00001.h5"),
    "another recipe": (change_attribute, r"shard-00002.h5: made with another seed than shard-00000.h5 \(1, not 0\)"),
    "a short shard": (shorten, r"shard-00001.h5: holds .*'param_array': 7.* clips, 8 expected"),
    "a split of another space": (lambda f: change_split(f, "space", "name: x"), r"test.h5: its attribute space is not"),
    "a split of another seed": (lambda f: change_split(f, "seed", 7), r"test.h5: its attribute seed is not that of"),
    "a split that says nonsense": (lambda f: change_split(f, "edits", b"\xff"), r"test.h5: its attribute edits is not"),
    "a few numbers of how audible": (lambda f: change_split(f, "audible", [1.0]), r"audible is not a number for each"),
    "other spectrograms": (show_others, r"test.h5: shows other clips in mel_spec than in param_array"),
    "no vectors": (lambda f: without(f, "param_array"), r"val.h5 is not a readable HDF5 file, .*param_array"),
    "clips of 16 TB": (huge, r"shard-00001.h5: not readable, .*audio has clips of shape"),
    "shards of no clips": (lambda f: recipes(f, "shard_size", 0), r"shards of 0 clips"),
    "a link to nowhere": (break_links, r"shard-00001.h5: .*No such file or directory.*check again"),
    "a split twice": (repeat_a_split, r"test.h5 and val.h5: both hold clip 4 of shard-00000.h5"),
}  # fmt: skip


def test_a_sound_dataset_has_no_problems(small, capsys):
    assert check(small) == []
    assert main(["check", str(small)]) == 0
    assert "every clip was read: no problems" in capsys.readouterr().out


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_told_how_to_mend(mine, capsys, kind):
    damage, message = DAMAGE[kind]
    damage(mine)
    assert main(["check", str(mine)]) == 1
    out = capsys.readouterr().out
    problems = [line for line in out.splitlines() if line.startswith("PROBLEM ")]
    assert any(re.search(message, line) for line in problems), out
    assert all("again" in line for line in problems), out


@pytest.mark.parametrize(
    "kind", ["a truncated shard", "a missing shard", "NaN", "a short shard", "another recipe"]
)
def test_a_shard_that_is_deleted_as_told_comes_back_the_same(small, mine, short_space, kind):
    DAMAGE[kind][0](mine)
    for problem in check(mine):
        name = problem.split(":")[0]
        if name.startswith("shard"):
            (mine / name).unlink(missing_ok=True)
    render(mine, short_space)
    assert check(mine) == []
    for path in sorted(small.glob("*.h5")):
        with h5py.File(path) as old, h5py.File(mine / path.name) as new:
            assert all(old[name][:].tobytes() == new[name][:].tobytes() for name in old)


def test_what_is_short_behind_a_split_is_found_without_a_recipe(mine):
    """HDF5 reads zeros there."""
    for path in mine.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            for name in list(file.attrs):
                del file.attrs[name]
    with h5py.File(mine / "shard-00000.h5", "r+") as file:
        for name in list(file):
            rows = file[name][:6]
            del file[name]
            file[name] = rows
    problem = "test.h5: shows 8 clips of shard-00000.h5, which holds 6; delete it and run the command again that made"
    assert any(found.startswith(problem) for found in check(mine))


@pytest.mark.skipif(sys.platform == "win32", reason="locks files in another way")
def test_a_shard_that_is_locked_is_not_called_damaged(mine, short_space):
    import fcntl

    with open(mine / "shard-00001.h5", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (problem,) = [p for p in check(mine) if "shard-00001" in p]
        assert "can't be read now: Resource temporarily unavailable. It may be sound" in problem
        assert "delete" not in problem and "damaged" not in problem
        with pytest.raises(DatasetError, match="can't be read now"):
            render(mine, short_space)
    assert check(mine) == []


def test_a_file_that_is_no_shard_is_left_alone(mine):
    shutil.copy(mine / "shard-00001.h5", mine / "shard-backup.h5")
    assert check(mine) == []


def test_spectrograms_that_are_missing_are_named(mine):
    for path in mine.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file["mel_spec"]
    (problem,) = check(mine)
    assert "has neither mel_spec nor coarse; 'synthnb featurize --feature mel_spec' adds it" in problem


def test_a_dataset_that_is_being_rendered_is_incomplete_not_damaged(mine, capsys):
    (mine / "stats.npz").unlink()
    (mine / "shard-00002.h5").unlink()
    (mine / "shard-00002.partial-7").touch()
    write_splits(mine, [8, 8, 4], {"val": 4, "test": 4, "train": 12})
    assert check(mine) == [
        "incomplete, 16 of 20 clips: they are still being rendered, or run the same command again"
    ]
    assert main(["check", str(mine)]) == 1
    assert "8 train, 4 val and 4 test clips; not complete" in capsys.readouterr().out


@pytest.mark.parametrize("keep", ["mel", "compact"])
def test_other_kinds_of_dataset_are_checked(tmp_path, short_space, keep):
    folder = generate(tmp_path, short_space, 6, 2, 2, keep=keep, shard_size=4, workers=1, progress=False)
    assert check(folder) == []
    path = folder / "shard-00001.h5"
    with h5py.File(path) as file:
        at = file["mel_spec" if keep == "mel" else "coarse"].id.get_offset()
    flip(path, at + 1000)
    (problem,) = check(folder)
    assert "its checksum is wrong" in problem


def test_an_edit_may_be_what_it_was(mine):
    with h5py.File(mine / "shard-00000.h5") as file:
        vector = file["param_array"][4]
    change(mine, "param_array", 5, vector, shard=0)
    assert check(mine) == []


def test_a_flipped_bit_is_found_by_its_checksum(mine):
    path = mine / "shard-00001.h5"
    with h5py.File(path, "r+") as file:
        at = file["audio"].id.get_offset()
    flip(path, at + 101)
    (problem,) = check(mine)
    assert problem.startswith("shard-00001.h5: audio is damaged: its checksum is wrong; delete it")


def test_a_flipped_bit_is_found_by_the_checksums_of_others(mine):
    path = mine / "shard-00001.h5"
    with h5py.File(path, "r+") as file:
        for name in list(file):
            values = file[name][:]
            del file[name]
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), fletcher32=True)
        at = file["audio"].id.get_chunk_info(5).byte_offset
    assert check(mine) == []
    flip(path, at + 101)
    (problem,) = check(mine)
    assert problem.startswith(
        "shard-00001.h5: audio of clips 0 to 7 can't be read (its checksum is wrong); delete it"
    )


def test_a_flipped_bit_never_stops_the_check(small, tmp_path):
    rng = np.random.default_rng(0)
    data = (small / "shard-00001.h5").read_bytes()
    mine = shutil.copytree(small, tmp_path / "mine")
    for at in rng.integers(0, 4096, 20):  # where HDF5 keeps its structure
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        (mine / "shard-00001.h5").write_bytes(damaged)
        assert all(isinstance(problem, str) for problem in check(mine))


def test_info_describes_a_dataset(small, capsys):
    assert main(["info", str(small)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == describe(small)
    assert "12 train, 4 val and 4 test clips" in out and "3 shards, " in out and " MB" in out
    assert "space 'dexed' for dexed: 145 parameters" in out and "0.5 s" in out
    assert "audio        float16 (clips, 1, 22050)" in out and "param_array  float32 (clips, 414)" in out
    assert "seed 0" in out and "edits 1" in out and "dexed-py" in out


def test_what_is_no_dataset_is_refused(tmp_path, mine):
    with pytest.raises(DatasetError, match=r"no dataset in .*; render one with 'synthnb generate'"):
        check(tmp_path)
    (mine / "train.h5").unlink()
    with pytest.raises(DatasetError, match=r"no dataset at .*train.h5"):
        describe(mine)
