"""Feeding a training: the compact copy, the order of the clips, and fields that stay together."""

import itertools
import os

import numpy as np
import pytest
import torch

from synthnb.data import feed as datamodule
from synthnb.data.feed import ClipData, Clips, Rows, compact_copy, save_rows
from synthnb.data.layouts import write_subset
from synthnb.data.shards import DatasetError
from synthnb.features import coarse, log_mel
from synthnb.tests.test_generate import render, split


def test_the_compact_copy_holds_every_clip(short_dataset):
    records = compact_copy(short_dataset / "train.h5")
    mel = torch.from_numpy(split(short_dataset, "train", "mel_spec")).float()
    np.testing.assert_array_equal(records["mel"], coarse(mel).half().numpy())
    np.testing.assert_array_equal(records["vector"], split(short_dataset, "train"))


def test_a_copy_that_cannot_be_kept_stays_in_memory(mine, monkeypatch):
    def no_room(path, count, parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datamodule, "save_rows", no_room)
    records = compact_copy(mine / "train.h5")
    monkeypatch.undo()
    np.testing.assert_array_equal(records, compact_copy(mine / "train.h5"))


def test_rows_are_saved_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.npy"
    parts = [np.arange(6.0).reshape(3, 2), np.ones((1, 2))]
    save_rows(path, 4, iter(parts))
    np.testing.assert_array_equal(np.load(path), np.concatenate(parts))

    def interrupted():
        yield parts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_rows(tmp_path / "other.npy", 4, interrupted())
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]


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
        np.testing.assert_array_equal(mel.half(), batch["mel"].half())
        assert (batch["heard"] - mel).abs().mean() < 0.1  # audio is stored in float16
        seen += at
    assert len(set(seen)) > 150
    whole = {name: values[:16] for name, values in next(iter(data.val_dataloader())).items()}
    np.testing.assert_array_equal(whole["audio"], split(short_dataset, "val", "audio"))


def test_a_pass_mixes_near_and_far(short_space, monkeypatch):
    """Of blocks of 4 clips, 5 at a time: each pass has every clip once, neighbours part, and all shards come up."""
    monkeypatch.setattr(datamodule, "BLOCK", 4)
    monkeypatch.setattr(datamodule, "MIXED", 5)
    clips = Clips.__new__(Clips)
    clips.clips, clips.batch_size, clips.skip, clips.seed = 1003, 10, 0, 0
    stream = itertools.chain.from_iterable(clips._shuffled())
    one, two = (np.array(list(itertools.islice(stream, 1003))) for _ in range(2))
    assert sorted(one) == sorted(two) == list(range(1003)) and (one != two).any()
    assert np.mean(np.abs(np.diff(one)) == 1) < 0.1
    spread = [len(set(one[at : at + 20] // 100)) for at in range(0, 1000, 20)]
    assert np.mean(spread) > 3.5  # of eleven shards, in five random blocks


def test_few_clips_feed_many_workers(mine):
    """Each worker's share of a pass is less than a batch: it goes on with the next pass."""
    loader = ClipData(mine, 8, workers=2).train_dataloader()
    batches = list(itertools.islice(loader, 6))
    assert all(len(batch["mel"]) == 8 for batch in batches)


def test_the_training_gets_the_std_of_each_coarse_band(dataset):
    mel = coarse(torch.from_numpy(split(dataset, "train", "mel_spec")).float()).double().numpy()
    data = ClipData(dataset, 16)
    assert data.mean.shape == data.std.shape == (1, 64, 1) and data.std.dtype == torch.float32
    np.testing.assert_allclose(data.mean[..., 0], mel.mean(axis=(0, 3)), atol=1e-2)
    np.testing.assert_allclose(data.std[..., 0], mel.std(axis=(0, 3)), atol=1e-2)


def test_a_band_that_never_sounds_has_a_std_to_divide_by(mine):
    records = compact_copy(mine / "train.h5").copy()
    records["mel"][:, :, -3:] = -80
    np.save(mine / "train-compact.npy", records)
    data = ClipData(mine, 4)
    assert (data.mean[:, -3:] == -80).all()
    assert torch.isfinite(data.std).all() and data.std.min() > 0.01


def test_a_changed_dataset_is_copied_again(mine):
    before = compact_copy(mine / "train.h5").copy()
    kept = mine / "train-compact.npy"
    assert kept.is_file() and before["mel"].dtype == np.float16
    changed = before.copy()
    changed["mel"] += 1
    np.save(kept, changed)
    os.utime(kept, (0, 0))  # older than stats.npz, which a new dataset would have
    np.testing.assert_array_equal(compact_copy(mine / "train.h5"), before)
    (mine / "stats.npz").unlink()
    with pytest.raises(DatasetError, match="is not complete; run notebook 01_generate_data again"):
        compact_copy(mine / "train.h5")


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
    np.testing.assert_array_equal(rows(0, 10, skip=10), one[200:])


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
    folder = render(tmp_path, short_space, 12, 3, 3, edits=2)
    stream = iter(Clips(folder / "train.h5", short_space, 6, endless=True))
    whole = short_space.to_quantiles(split(folder, "train"))
    for batch in itertools.islice(stream, 6):
        row, source = (
            [int(np.flatnonzero((whole == v).all(axis=1))[0]) for v in batch[name].numpy()]
            for name in ("quantiles", "source")
        )
        assert all(a // 3 == b // 3 and a != b for a, b in zip(row, source))


def test_a_batch_larger_than_the_dataset_is_refused(small):
    with pytest.raises(ValueError, match="12 training clips are fewer than the batch size 13"):
        ClipData(small, 13)
