"""Feeding a training: what is mapped, the order of the clips, folders that grow, fields that stay together."""

import itertools
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from synthnb.data import rows as mapping
from synthnb.data.feed import ClipData, Clips, unpacked
from synthnb.data.layouts import write_subset
from synthnb.data.rows import Rows
from synthnb.data.shards import DatasetError, pack, unpack
from synthnb.features import coarse, log_mel
from synthnb.tests.test_generate import interrupt_after, render, split


@pytest.fixture(scope="module")
def lean(tmp_path_factory, short_space):
    """48 + 8 + 8 compact clips of half a second, every second an edit, in shards of 8. Read it only."""
    folder = tmp_path_factory.mktemp("lean") / "dataset"
    return render(folder, short_space, 48, 8, 8, keep="compact", edits=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def seen(folder):
    return Rows(folder / "train.h5", ["coarse", "param_array"])[range(len(split(folder, "train")))]


def test_compact_clips_are_mapped_from_the_shards(lean):
    rows = Rows(lean / "train.h5", ["coarse", "param_array", "attempts"])
    found = rows[[47, 0, 9, 9]]
    for name, values in found.items():
        np.testing.assert_array_equal(values, split(lean, "train", name)[[47, 0, 9, 9]])
    assert all(isinstance(values, np.ndarray) for part in rows._parts for values in part.values())
    assert not (lean / "compact").exists()


def test_other_datasets_get_a_compact_copy(mine):
    found = seen(mine)
    mel = torch.from_numpy(split(mine, "train", "mel_spec")).float()
    np.testing.assert_array_equal(found["coarse"], pack(coarse(mel).numpy()))
    np.testing.assert_array_equal(found["param_array"], split(mine, "train"))
    copies = sorted((mine / "compact").iterdir())
    assert [path.name for path in copies] == ["shard-00001.h5", "shard-00002.h5"]
    before = [path.stat().st_mtime_ns for path in copies]
    seen(mine)
    assert [path.stat().st_mtime_ns for path in copies] == before


def test_a_changed_shard_is_copied_again(mine):
    seen(mine)
    with h5py.File(mine / "shard-00001.h5", "r+") as file:
        file["mel_spec"][:] = -40
    assert (np.abs(unpack(seen(mine)["coarse"][:8]) + 40) < 0.2).all()


def test_a_copy_that_cannot_be_kept_beside_is_kept_in_the_cache(mine, cache, tmp_path, monkeypatch):
    (mine / "compact").write_text("in the way, as a folder that can't be written to")
    found = seen(mine)
    assert len(list((tmp_path / "cache" / "synthnb").iterdir())) == 2

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(mapping, "_write_compact", never)
    np.testing.assert_array_equal(seen(mine)["coarse"], found["coarse"])


def test_a_copy_that_can_be_kept_nowhere_is_an_error(mine, cache, tmp_path):
    (mine / "compact").touch()
    (tmp_path / "cache").touch()
    with pytest.raises(
        DatasetError, match=r"neither beside it nor in .*; name a folder with room in XDG_CACHE"
    ):
        ClipData(mine, 4)


def test_a_shard_that_is_shorter_than_the_split_says_is_named(lean, tmp_path):
    mine = shutil.copytree(lean, tmp_path / "mine")
    shutil.copy(mine / "shard-00001.h5", mine / "other")
    with h5py.File(mine / "other") as old, h5py.File(mine / "shard-00003.h5", "w") as new:
        for name in old:
            new[name] = old[name][:5]
    with pytest.raises(DatasetError, match=r"shard-00003.h5 holds 5 clips, not the 8 that a split shows"):
        ClipData(mine, 8)


@pytest.mark.parametrize("name", ["param_array", "mel_spec", "audio"])
def test_rows_come_in_any_order(short_dataset, tmp_path, name):
    wanted = [199, 0, 83, 84, 83, 100]  # of two shards, the first of which begins with val and test clips
    whole = split(short_dataset, "train", name)
    np.testing.assert_array_equal(Rows(short_dataset / "train.h5", [name])[wanted][name], whole[wanted])
    subset = write_subset(short_dataset, tmp_path / "subset", 60, seed=1)
    rows = Rows(subset / "train.h5", [name])
    assert len(rows) == 60
    np.testing.assert_array_equal(rows[range(60)][name], split(subset, "train", name))


def test_a_field_that_is_not_there_is_named(short_dataset):
    with pytest.raises(
        DatasetError, match=r"train.h5 has no music2latent; 'synthnb featurize' adds features"
    ):
        ClipData(short_dataset, 8, fields=["audio", "music2latent"])


def add_mel(batch):
    """A `transform`: the spectrogram of the stored audio."""
    return batch | {"heard": coarse(log_mel(batch["audio"].float()))}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_fields_of_a_row_are_of_one_clip(short_dataset, short_space, workers):
    """In a loader process or here, whole fields and what a transform makes of them go with mel and vector."""
    fields = ["audio", "mel_spec", "param_array"]
    data = ClipData(short_dataset, 32, workers, seed=1, fields=fields, transform=add_mel)
    audio, vectors = split(short_dataset, "train", "audio"), split(short_dataset, "train")
    seen = []
    for batch in itertools.islice(data.train_dataloader(), 8):
        order = torch.randperm(32)  # as a coupling might bring them
        batch = {name: values[order] for name, values in batch.items()}
        at = [int(np.flatnonzero((vectors == v).all(axis=1))[0]) for v in batch["param_array"].numpy()]
        np.testing.assert_array_equal(batch["quantiles"], short_space.to_quantiles(vectors[at]))
        np.testing.assert_array_equal(batch["audio"], audio[at])
        mel = coarse(batch["mel_spec"].float())
        np.testing.assert_array_equal(unpack(pack(mel.numpy())), batch["mel"])
        assert (batch["heard"] - mel).abs().mean() < 0.1  # audio is stored in float16
        seen += at
    assert len(set(seen)) > 150
    whole = {name: values[:16] for name, values in next(iter(data.val_dataloader())).items()}
    np.testing.assert_array_equal(whole["audio"], split(short_dataset, "val", "audio"))


def test_few_clips_feed_many_workers(mine):
    """Each worker's share of a pass is less than a batch: it goes on with the next pass."""
    loader = ClipData(mine, 8, workers=2).train_dataloader()
    batches = list(itertools.islice(loader, 6))
    assert all(len(batch["quantiles"]) == 8 for batch in batches)


def test_the_training_gets_the_std_of_each_coarse_band(dataset):
    mel = coarse(torch.from_numpy(split(dataset, "train", "mel_spec")).float()).double().numpy()
    data = ClipData(dataset, 16)
    assert data.mean.shape == data.std.shape == (1, 64, 1) and data.std.dtype == torch.float32
    np.testing.assert_allclose(data.mean[..., 0], mel.mean(axis=(0, 3)), atol=1e-2)
    np.testing.assert_allclose(data.std[..., 0], mel.std(axis=(0, 3)), atol=1e-2)


def test_a_band_that_never_sounds_has_a_std_to_divide_by(mine):
    for path in mine.glob("shard-*"):
        with h5py.File(path, "r+") as file:
            file["mel_spec"][:, :, -6:] = -80
    data = ClipData(mine, 4)
    assert (data.mean[:, -3:] == -80).all()
    assert torch.isfinite(data.std).all() and data.std.min() > 0.01


def test_validation_reads_every_clip_once_in_order(short_dataset, short_space):
    batches = list(Clips(short_dataset / "train.h5", short_space, 16, endless=False))
    assert [len(batch["mel"]) for batch in batches] == 12 * [16] + [8]
    quantiles = torch.cat([batch["quantiles"] for batch in batches]).numpy()
    np.testing.assert_array_equal(quantiles, short_space.to_quantiles(split(short_dataset, "train")))
    mel = torch.cat([batch["mel"] for batch in batches])
    assert mel.dtype == torch.float32 and mel.shape == (200, 1, 64, 12)


def test_training_shuffles_by_seed_and_sees_each_clip_once_a_pass(short_dataset, short_space):
    def rows(seed, batches, skip=0):
        stream = iter(Clips(short_dataset / "train.h5", short_space, 20, endless=True, seed=seed, skip=skip))
        return torch.cat([next(stream)["quantiles"] for _ in range(batches)]).numpy()

    one, whole = rows(0, 20), short_space.to_quantiles(split(short_dataset, "train"))
    for a_pass in (one[:200], one[200:]):
        assert sorted(row.tobytes() for row in a_pass) == sorted(row.tobytes() for row in whole)
    assert (one[:200] != one[200:]).any()
    np.testing.assert_array_equal(one, rows(0, 20))
    assert (one != rows(1, 20)).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_gets_what_an_undisturbed_one_gets(lean, workers):
    def batches(skip, count):
        loader = ClipData(lean, 10, workers, seed=4, skip=skip).train_dataloader()
        return list(itertools.islice(loader, count))

    undisturbed = list(itertools.islice(ClipData(lean, 10, seed=4).train_dataloader(), 14))
    for skip in (0, 3, 7):  # a pass ends in the middle of batch 4
        for one, other in zip(batches(skip, 6), undisturbed[skip:]):
            assert all(torch.equal(one[name], other[name]) for name in other)


def test_processes_that_train_together_take_different_clips(lean, short_space):
    def rows(rank):
        stream = iter(Clips(lean / "train.h5", short_space, 8, endless=True, rank=rank, world=3))
        return [next(stream)["quantiles"].numpy() for _ in range(2)]

    whole = short_space.to_quantiles(split(lean, "train"))
    taken = np.concatenate([batch for rank in range(3) for batch in rows(rank)])  # 48 of 48 clips
    assert sorted(row.tobytes() for row in taken) == sorted(row.tobytes() for row in whole)


def test_a_training_begun_on_a_tenth_of_a_folder_takes_in_the_rest(lean, tmp_path, short_space, monkeypatch):
    folder, sizes = tmp_path / "filling", {"keep": "compact", "edits": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        render(folder, short_space, 48, 8, 8, **sizes)
    with pytest.raises(DatasetError, match=r"0 training clips are fewer than the batch size 4.*rendered"):
        ClipData(folder, 4)
    (folder / "val.h5").unlink()
    with pytest.raises(DatasetError, match=r"no val.h5 yet: its first clips are still being rendered"):
        ClipData(folder, 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 2)
        render(folder, short_space, 48, 8, 8, **sizes)
    data = ClipData(folder, 4)
    stream = iter(data.train_dataloader())
    whole = [row.tobytes() for row in short_space.to_quantiles(split(lean, "train"))]

    def clips(batches):
        return {
            whole.index(row.tobytes()) for _ in range(batches) for row in next(stream)["quantiles"].numpy()
        }

    assert data.clips == 8 and clips(4) == set(range(8))
    render(folder, short_space, 48, 8, 8, **sizes)
    assert clips(24) == set(range(48))


def test_a_training_needs_no_synth(lean):
    code = """
import sys
sys.modules["dexed"] = sys.modules["pedalboard"] = None
from synthnb.data.feed import ClipData
from synthnb.data.library import Library
from synthnb.synths import Synth
batch = next(iter(ClipData(sys.argv[1], 4).train_dataloader()))
assert len(batch["known"]) == 4 and len(Library.build(sys.argv[1])) == 24
"""
    subprocess.run([sys.executable, "-c", code, lean], check=True)


def test_spectrograms_stay_packed_until_they_are_where_they_are_needed(lean):
    data = ClipData(lean, 8)
    batch = next(iter(data.train_dataloader()))
    assert batch["mel_codes"].dtype == batch["source_mel_codes"].dtype == torch.uint8 and "mel" not in batch
    codes = batch["mel_codes"].numpy()
    batch = data.on_after_batch_transfer(batch, 0)
    assert set(batch) == {"mel", "source_mel", "quantiles", "source", "known"}
    np.testing.assert_array_equal(batch["mel"], unpack(codes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_unpacks_as_a_cpu_does(lean):
    batch = next(iter(ClipData(lean, 8).train_dataloader()))
    assert batch["mel_codes"].is_pinned()
    there = unpacked({name: values.cuda() for name, values in batch.items()})
    here = unpacked(batch)
    assert all(torch.allclose(here[name], there[name].cpu(), atol=1e-4) for name in here)


def test_how_audible_parameters_are_comes_with_a_dataset(mine, short_space):
    assert ClipData(mine, 4).audible is None
    with h5py.File(mine / "train.h5", "r+") as file:
        file.attrs["audible"] = np.arange(148, dtype=np.float32)
    audible = ClipData(mine, 4).audible
    assert isinstance(audible, pd.Series) and list(audible.index) == [p.name for p in short_space]
    assert audible["end"] == 147
    with h5py.File(mine / "train.h5", "r+") as file:
        file.attrs["audible"] = [1.0]
    with pytest.raises(DatasetError, match="damaged: Length of values"):
        ClipData(mine, 4)


def test_validation_is_the_same_after_a_resume(short_dataset):
    one, two = (
        next(iter(ClipData(short_dataset, 8, seed=seed, skip=skip).val_dataloader()))
        for seed, skip in ((0, 0), (3, 50))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_clip_comes_with_another_of_its_family(short_dataset, short_space, mine):
    batch = next(iter(Clips(short_dataset / "val.h5", short_space, 16, endless=False)))
    swapped = np.arange(16).reshape(8, 2)[:, ::-1].ravel()
    assert torch.equal(batch["source"], batch["quantiles"][swapped])
    assert torch.equal(batch["source_mel"], batch["mel"][swapped])
    assert not torch.equal(batch["source"], batch["quantiles"]) and batch["known"].all()
    alone = next(iter(Clips(mine / "train.h5", short_space, 4, endless=False)))
    assert not alone["known"].any()


def test_families_of_three_are_not_mixed(short_space, tmp_path):
    folder = render(tmp_path, short_space, 12, 3, 3, edits=2, shard_size=9)
    stream = iter(Clips(folder / "train.h5", short_space, 6, endless=True))
    whole = short_space.to_quantiles(split(folder, "train"))
    for batch in itertools.islice(stream, 6):
        row, source = (
            [int(np.flatnonzero((whole == v).all(axis=1))[0]) for v in batch[name].numpy()]
            for name in ("quantiles", "source")
        )
        assert all(a // 3 == b // 3 and a != b for a, b in zip(row, source))


def test_a_batch_larger_than_the_dataset_is_refused(small):
    with pytest.raises(DatasetError, match="12 training clips are fewer than the batch size 13"):
        ClipData(small, 13)
