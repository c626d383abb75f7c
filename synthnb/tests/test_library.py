"""A library finds training clips by their sound, and draws their patches again."""

from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch

from synthnb.data.generate import generate
from synthnb.data.library import Library, nearest
from synthnb.data.shards import DatasetError, open_split
from synthnb.models.checkpoint import CheckpointError, load_model, save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.tests.test_generate import render, split


@pytest.fixture(scope="module")
def library(short_dataset):
    return Library.build(short_dataset)


@pytest.fixture(scope="module")
def drawn(short_dataset):
    """Spectrograms and vectors of the training clips that were drawn from the prior: every second one."""
    with open_split(short_dataset / "train.h5") as file:
        return torch.from_numpy(file["mel_spec"][::2]).float(), file["param_array"][::2]


@pytest.fixture
def model(short_space):
    """An untrained one."""
    settings = ModelSettings(sound=8, dim=8, hidden=8, depth=1)
    return FlowModel(short_space, settings, torch.zeros(1, 64, 1), torch.ones(1, 64, 1))


def test_it_holds_few_bytes_of_every_clip_that_was_drawn(library, drawn):
    assert library.codes.shape == (100, 48) and library.codes.dtype == torch.int8
    assert library.attempts.shape == (100,) and library.attempts.dtype == torch.uint8
    assert library.first == 16  # 16 validation and 16 test clips in families of 2 come before
    assert library.codes.abs().max() == 127


def test_a_clip_is_its_own_nearest(library, drawn):
    for mel, vector in zip(*drawn):
        np.testing.assert_array_equal(library.nearest(mel, 1)[0], vector)


def test_neighbours_are_near_and_in_order(library, drawn):
    mels, vectors = drawn
    gaps = np.array([[(a - b).abs().mean().item() for b in mels] for a in mels[:20]])
    order = np.array(
        [[np.flatnonzero((vectors == v).all(axis=1))[0] for v in library.nearest(m, 9)] for m in mels[:20]]
    )
    found = np.take_along_axis(gaps, order, axis=1)
    assert found[:, 1:].mean() < 0.7 * gaps.mean()
    assert found[:, 1:3].mean() < found[:, 3:6].mean() < found[:, 6:].mean()
    assert len(library.nearest(mels[0], 500)) == 100


def test_it_travels_in_a_checkpoint(model, library, drawn, tmp_path):
    model.library = library
    loaded = load_model(save_model(model, tmp_path / "model.safetensors", {})).library
    assert torch.equal(loaded.codes, library.codes) and torch.equal(loaded.attempts, library.attempts)
    for mel in drawn[0][:10]:
        np.testing.assert_array_equal(loaded.nearest(mel, 3), library.nearest(mel, 3))


def test_numbers_drawn_otherwise_are_refused(model, library, tmp_path, monkeypatch):
    model.library = library
    path = save_model(model, tmp_path / "model.safetensors", {})
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: make([*seed, 1]))
    with pytest.raises(
        CheckpointError, match="draws other patches than the one that its library was made with"
    ):
        load_model(path)


def test_a_checkpoint_whose_library_is_incomplete_is_refused(model, library, tmp_path):

    class Broken(Library):
        def tensors(self):
            return {"codes": self.codes}

    model.library = Broken(**{field.name: getattr(library, field.name) for field in fields(library)})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(save_model(model, tmp_path / "model.safetensors", {}))


def test_of_a_folder_that_is_being_filled_it_holds_what_is_there(short_space, tmp_path):
    """Two of three machines have rendered their parts: between their shards there are gaps."""
    for part in ((1, 3), (2, 3)):
        folder = render(tmp_path, short_space, 32, 4, 4, edits=1, keep="compact", part=part, shard_size=4)
    vectors = split(folder, "train")
    library = Library.build(folder)
    assert len(library) == 10 and len(vectors) == 20
    np.testing.assert_array_equal(np.stack([library[i] for i in range(10)]), vectors[::2])


def test_of_edits_alone_there_is_none(short_space, tmp_path):
    folder = render(tmp_path, short_space, 8, 4, 4, edits=1, keep="compact")
    for path in folder.glob("shard-*"):
        with h5py.File(path, "r+") as file:
            file["attempts"][:] = 255
    with pytest.raises(DatasetError, match="no training clips yet that were drawn from the prior"):
        Library.check(folder)


def test_a_patch_that_took_too_many_draws_is_left_out(short_space, tmp_path):
    folder = render(tmp_path, short_space, 8, 4, 4, edits=1, keep="compact")
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file["attempts"][2] = 255
    library = Library.build(folder)
    assert len(library) == 3
    np.testing.assert_array_equal(library[1], split(folder, "train")[4])


def test_clips_that_the_seed_does_not_draw_are_refused(short_space, tmp_path):
    folder = generate(tmp_path, short_space, 6, 2, 2, shard_size=10, edits=0, workers=1, progress=False)
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["param_array"][7, 0] += 0.1
    with pytest.raises(DatasetError, match=r"training clip 3 of .* is not what seed 0 draws from 'dexed'"):
        Library.build(folder)


def test_the_nearest_are_those_of_a_plain_search():
    rng = torch.Generator().manual_seed(0)
    rows, point = torch.randn(5000, 6, generator=rng), torch.randn(1, 6, generator=rng)
    for order in (1, 2):
        gaps = torch.linalg.vector_norm(rows - point, order, dim=1)
        assert nearest(rows.split(700), point, 3, order) == gaps.argsort()[:3].tolist()
    assert len(nearest([rows[:2]], point, 3, 2)) == 2
