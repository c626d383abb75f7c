"""Subsets over another dataset's shards, and folders in the layout of synth-permutations, read and written."""

import shutil
import sys

import h5py
import numpy as np
import pytest
import torch

from synthnb.cli import main
from synthnb.data.check import check
from synthnb.data.describe import describe
from synthnb.data.featurize import add_features
from synthnb.data.feed import ClipData, unpacked
from synthnb.data.generate import generate
from synthnb.data.layouts import export, write_subset
from synthnb.data.library import Library
from synthnb.data.shards import DatasetError, open_split
from synthnb.data.splits import write_stats
from synthnb.evaluate.run import Retrieval
from synthnb.features import log_mel
from synthnb.synths import open_synth


def rows(folder, split, field="param_array"):
    with open_split(folder / f"{split}.h5") as file:
        return file[field][:]


def places(some, whole):
    """Where each row of `some` is in `whole`."""
    return [int(np.flatnonzero((whole == row).all(axis=1))[0]) for row in some]


@pytest.fixture
def mine(short_dataset, tmp_path):
    """200 + 16 + 16 clips, every second an edit, in shards of 100."""
    return shutil.copytree(short_dataset, tmp_path / "mine")


def by_hand(folder, absolute=False):
    """A folder as the scripts of synth-permutations write it: two shards of six clips for training, one for each other.

    float16 audio, all else float32, attributes on the audio alone; float32 splits of whole shards.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = {
        "audio": (2, 22_050),
        "mel_spec": (2, 128, 51),
        "music2latent": (128, 6),
        "param_array": (92,),
    }
    for index in range(4):
        with h5py.File(folder / f"shard-{index}.h5", "w") as shard:
            for name, shape in shapes.items():
                values = rng.random((6, *shape), dtype=np.float32) * (-80 if name == "mel_spec" else 1)
                shard[name] = values.astype(np.float16 if name == "audio" else np.float32)
            settings = {
                "velocity": 100,
                "signal_duration_seconds": 4.0,
                "sample_rate": 44_100.0,
                "channels": 2,
            }
            shard["audio"].attrs.update(settings, min_loudness=-55.0)
    for split, shards in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        with h5py.File(folder / f"{split}.h5", "w") as file:
            for name, shape in shapes.items():
                layout = h5py.VirtualLayout((6 * len(shards), *shape), np.float32)
                for i, index in enumerate(shards):
                    path = str(folder / f"shard-{index}.h5") if absolute else f"shard-{index}.h5"
                    source = h5py.VirtualSource(path, name, (6, *shape), np.float32)
                    layout[6 * i : 6 * i + 6] = source
                file.create_virtual_dataset(name, layout)
    write_stats(folder)
    return folder


def test_a_subset_is_a_run_of_whole_families(mine, tmp_path):
    subset = write_subset(mine, tmp_path / "subset", 60, seed=3)
    at = places(rows(subset, "train"), rows(mine, "train"))
    assert at == list(range(at[0], at[0] + 60)) and at[0] % 2 == 0
    for field in ("audio", "mel_spec"):
        np.testing.assert_array_equal(rows(subset, "train", field), rows(mine, "train", field)[at])
    for split in ("val", "test"):
        np.testing.assert_array_equal(rows(subset, split), rows(mine, split))
    mel = rows(subset, "train", "mel_spec").astype(np.float64)
    with np.load(subset / "stats.npz") as stats:
        np.testing.assert_allclose(stats["mean"], mel.mean(axis=0), atol=1e-3)
    assert check(subset) == [] and "60 train, 16 val and 16 test" in describe(subset)[0]
    assert (
        sum(path.stat().st_size for path in subset.iterdir()) < 0.1 * (mine / "shard-00000.h5").stat().st_size
    )


def test_the_seed_of_a_subset_decides_which_clips(mine, tmp_path):
    firsts = [
        rows(write_subset(mine, tmp_path / f"{i}", 20, seed), "train") for i, seed in enumerate((1, 1, 2))
    ]
    assert (firsts[0] == firsts[1]).all() and (firsts[0] != firsts[2]).any()


def test_a_subset_trains_retrieves_and_has_a_library(mine, tmp_path):
    subset = write_subset(mine, tmp_path / "a" / "subset", 60, seed=3)
    smaller = write_subset(subset, tmp_path / "smaller", 20, seed=4)
    for folder, clips in ((subset, 60), (smaller, 20)):
        assert ClipData(folder, 10).clips == clips
        library = Library.build(folder)  # draws its clips again
        np.testing.assert_array_equal(
            np.stack([library[i] for i in range(clips // 2)]), rows(folder, "train")[::2]
        )
    assert set(places(rows(smaller, "train"), rows(subset, "train"))) <= set(range(60))


@pytest.mark.parametrize("shown", ["../mine/shard-00000.h5", "shard-2.h5", "val.h5"])
def test_what_was_not_generated_here_is_not_overwritten(mine, short_space, tmp_path, shown):
    folder = tmp_path / "folder"
    if shown.startswith(".."):
        write_subset(mine, folder, 60)
    else:
        by_hand(folder)
    if shown == "val.h5":  # that holds its clips itself
        (folder / "shard-2.h5").rename(folder / shown)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DatasetError, match=f"shows clips of {shown}, which were not .* use an empty folder"):
        generate(folder, short_space, 60, 16, 16, edits=1, shard_size=100, workers=1, progress=False)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_subset_moves_with_its_dataset_and_names_what_is_missing(mine, tmp_path):
    (tmp_path / "one").mkdir()
    mine = mine.rename(tmp_path / "one" / "mine")
    before = rows(write_subset(mine, tmp_path / "one" / "subset", 190), "train")
    moved = (tmp_path / "one").rename(tmp_path / "two")
    np.testing.assert_array_equal(rows(moved / "subset", "train"), before)
    (moved / "mine" / "shard-00001.h5").unlink()
    with pytest.raises(DatasetError, match=r"needs ../mine/shard-00001.h5, not found from where it lies"):
        open_split(moved / "subset" / "train.h5")
    assert any(
        "../mine/shard-00001.h5: missing; put it back" in problem for problem in check(moved / "subset")
    )


def test_an_impossible_subset_is_refused(mine, tmp_path):
    for clips, message in (
        (201, "201 clips of .*: 1 to 200 are there"),
        (5, "only whole families of 2"),
        (0, "1 to"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_subset(mine, tmp_path / "subset", clips)
    assert not (tmp_path / "subset").exists()
    with pytest.raises(DatasetError, match="mine is not empty; use a new folder"):
        write_subset(mine, mine, 10)


@pytest.mark.parametrize("absolute", [False, True])
def test_their_folder_opens_and_moves(tmp_path, absolute):
    theirs = by_hand(tmp_path / "theirs", absolute=absolute).rename(tmp_path / "moved")
    with open_split(theirs / "train.h5") as file:
        assert {name: (data.shape, data.dtype) for name, data in file.items()} == {
            "audio": ((12, 2, 22_050), np.float32),
            "mel_spec": ((12, 2, 128, 51), np.float32),
            "music2latent": ((12, 128, 6), np.float32),
            "param_array": ((12, 92), np.float32),
        }
    with h5py.File(theirs / "shard-1.h5") as shard:
        np.testing.assert_array_equal(rows(theirs, "train", "mel_spec")[6:], shard["mel_spec"][:])
    assert check(theirs, "surge_simple") == [] == check(theirs)
    assert "space 'surge_simple'" in describe(theirs, "surge_simple")[2]
    assert "not in its attributes; --space names it" in describe(theirs)[2]


def test_their_clips_feed_a_training_once_the_space_is_named(tmp_path):
    theirs = by_hand(tmp_path / "theirs")
    data = ClipData(theirs, 4, space="surge_simple", fields=["music2latent", "param_array"])
    batch = unpacked(next(iter(data.train_dataloader())))
    assert batch["mel"].shape == (4, 2, 64, 12) and batch["quantiles"].shape == (4, 92)
    at = places(batch["param_array"].numpy(), rows(theirs, "train"))
    np.testing.assert_array_equal(batch["music2latent"], rows(theirs, "train", "music2latent")[at])
    assert data.mean.shape == (2, 64, 1) and not data.seeded
    with pytest.raises(DatasetError, match=r"does not say its space; give the name or .yaml file of one"):
        ClipData(theirs, 4)
    with pytest.raises(DatasetError, match="holds vectors of 92 numbers; those of space 'dexed' have 414"):
        ClipData(theirs, 4, space="dexed")
    with pytest.raises(DatasetError, match="was not made by generate: its clips cannot be drawn again"):
        Library.build(theirs)


def test_their_clips_are_retrieved(tmp_path):
    theirs = by_hand(tmp_path / "theirs")
    found = Retrieval(theirs, tmp_path / "cache")
    mel = rows(theirs, "train", "mel_spec")[5]
    np.testing.assert_array_equal(found.nearest(torch.from_numpy(mel), 1), rows(theirs, "train")[5:6])


def test_a_subset_of_theirs_says_its_space(tmp_path, capsys):
    theirs, out = by_hand(tmp_path / "theirs"), tmp_path / "out"
    assert main(["subset", str(theirs), "--clips", "8", "--out", str(out), "--space", "surge_simple"]) == 0
    assert ClipData(out, 4).space.name == "surge_simple" and check(out) == []
    np.testing.assert_array_equal(rows(out, "test", "music2latent"), rows(theirs, "test", "music2latent"))
    assert main(["check", str(theirs), "--space", "dexed"]) == 2
    assert "holds vectors of 92 numbers" in capsys.readouterr().err


def test_their_unfinished_shard_is_found(tmp_path):
    theirs = by_hand(tmp_path / "theirs")
    with h5py.File(theirs / "shard-1.h5", "r+") as shard:
        for name in shard:
            shard[name][4:] = 0
    assert check(theirs)[0] == (
        "shard-1.h5: param_array of clip 4 was never written; get it again from where it came"
    )


def test_a_missing_decompressor_is_named(tmp_path, monkeypatch):
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        pipeline = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pipeline.set_chunk((1, 4))
        pipeline.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(
            file.id, b"param_array", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 4)), pipeline
        )
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(
        DatasetError, match=r"param_array is compressed by HDF5 filter 32999 .* pip install hdf5plugin"
    ):
        open_split(path)


def test_an_export_is_what_their_loaders_read(mine, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(mine), "--out", str(out)]) == 0
    assert "dataset_root for synth-permutations" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"shard-0000{i}.h5" for i in range(3)), "train.h5", "val.h5", "test.h5", "stats.npz"]
    )
    for split, clips in (("train", 200), ("val", 16), ("test", 16)):
        with h5py.File(out / f"{split}.h5") as file, np.load(out / "stats.npz") as stats:
            assert len(file["audio"]) == clips  # what they count by
            assert {file[name].dtype for name in file} == {np.dtype(np.float32)} and "attempts" not in file
            batch = (file["mel_spec"][4:8] - stats["mean"]) / stats["std"].clip(1e-3)
            assert batch.dtype == np.float32 and batch.shape == (4, 1, 128, 51)
            assert 0 <= file["param_array"][:].min() and file["param_array"][:].max() <= 1
            assert all(not source.file_name.startswith("/") for source in file["audio"].virtual_sources())
        for field in ("audio", "mel_spec", "param_array"):
            np.testing.assert_array_equal(rows(out, split, field), rows(mine, split, field))
    with h5py.File(out / "shard-00000.h5") as shard:  # train comes first there
        np.testing.assert_array_equal(shard["param_array"][:], rows(mine, "train"))
        assert shard["audio"].dtype == np.float16 and shard["mel_spec"].dtype == np.float32
        assert dict(shard["audio"].attrs) == {
            "velocity": 100, "signal_duration_seconds": 0.5, "sample_rate": 44_100, "channels": 1, "min_loudness": -55
        }  # fmt: skip


def test_an_export_opens_here_but_is_not_gone_on_with(mine, tmp_path, short_space):
    out = export(mine, tmp_path / "out")
    assert check(out) == [] and ClipData(out, 10).space == short_space
    with pytest.raises(DatasetError, match="seed = None, not 0; use an empty folder"):
        generate(out, short_space, 200, 16, 16, edits=1, shard_size=100, workers=1, progress=False)


def test_a_compact_dataset_does_what_others_do(tmp_path, short_space):
    folder, settings = tmp_path / "compact", {"shard_size": 8, "workers": 1, "progress": False}
    generate(folder, short_space, 24, 4, 4, keep="compact", **settings)
    assert check(folder) == []
    assert "  coarse       uint8 (clips, 1, 64, 12), checksums" in describe(folder)
    subset = write_subset(folder, tmp_path / "subset", 12, seed=1)
    assert check(subset) == [] and len(Library.build(subset)) == 6
    played = short_space.decode(rows(folder, "train")[5])
    mel = log_mel(torch.from_numpy(open_synth(short_space).render(*played, 0.5)[:1]))
    np.testing.assert_array_equal(Retrieval(folder, tmp_path).nearest(mel, 1), rows(folder, "train")[5:6])
    np.testing.assert_array_equal(Library.build(folder).nearest(mel, 24)[:1], rows(folder, "train")[4:5])
    with pytest.raises(DatasetError, match="has no audio, which the loaders need; generate it with audio"):
        export(folder, tmp_path / "out")
    add_features(folder, "mel_spec", device="cpu", workers=1, progress=False)  # rendered again
    np.testing.assert_allclose(rows(folder, "train", "mel_spec")[5], mel, atol=0.04)
    assert check(folder) == []


def test_what_their_loaders_could_not_read_is_not_exported(mine, tmp_path, short_space):
    lean = generate(tmp_path / "lean", short_space, 2, 0, 0, keep="mel", workers=1, progress=False)
    with pytest.raises(DatasetError, match="has no audio, which the loaders need"):
        export(lean, tmp_path / "out")
    (mine / "stats.npz").unlink()
    with pytest.raises(DatasetError, match=r"has no stats.npz: it is not complete"):
        export(mine, tmp_path / "out")
    assert not (tmp_path / "out").exists()
