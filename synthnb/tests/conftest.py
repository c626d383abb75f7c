"""What several tests share: the spaces, a synth, and tiny datasets that are rendered once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from synthnb.data.generate import generate
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.search.matcher import Matcher
from synthnb.space import Note, ParameterSpace
from synthnb.synths import open_synth


@pytest.fixture(scope="session")
def space():
    """The default space, `dexed`."""
    return ParameterSpace.load("dexed")


@pytest.fixture(scope="session")
def short_space(space):
    """`dexed` with clips of half a second, for tests of what does not depend on their length."""
    return ParameterSpace.parse(space.text.replace("seconds: 4.0", "seconds: 0.5"))


@pytest.fixture(scope="session")
def synth(space):
    """One Dexed for all tests; it carries nothing over from one note to the next."""
    return open_synth(space)


@pytest.fixture(scope="session")
def patches(space):
    """200 patches and notes from the prior."""
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(200)]


@pytest.fixture(scope="session")
def model(short_space):
    """A model of `short_space` that was never trained and has no library."""
    torch.manual_seed(0)
    settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
    model = FlowModel(short_space, settings, torch.full((1, 64, 1), -40.0), torch.full((1, 64, 1), 20.0))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def matcher(model):
    """Of that model, with one thread."""
    return Matcher(model, workers=1)


@pytest.fixture(scope="session")
def target(synth, patches):
    """A bright sound without a pitch that the synth made, `(1, samples)` of half a second."""
    audio = synth.render(patches[0][0], Note(60, 100, 0.0, 0.4), 0.5)[:1]
    assert np.abs(audio).max() > 0.01
    return audio


@pytest.fixture(scope="session")
def tone(space, synth):
    """Middle C of the initial patch, a sine, like `target`."""
    return synth.render(space.default_patch, Note(60, 100, 0.0, 0.4), 0.5)[:1]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, space):
    """A folder of 96 + 16 + 16 clips with audio, in shards of 32. Read it only."""
    folder = tmp_path_factory.mktemp("dataset")
    return generate(folder, space, 96, 16, 16, shard_size=32, edits=0, workers=1, progress=False)


@pytest.fixture(scope="session")
def short_dataset(tmp_path_factory, short_space):
    """A folder of 200 + 16 + 16 clips of half a second, every second an edit, in shards of 100. Read it only."""
    folder = tmp_path_factory.mktemp("short_dataset")
    return generate(folder, short_space, 200, 16, 16, shard_size=100, edits=1, workers=1, progress=False)


@pytest.fixture(scope="session")
def small(tmp_path_factory, short_space):
    """A folder of 12 + 4 + 4 clips of half a second in shards of 8. Read it only."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    return generate(folder, short_space, 12, 4, 4, shard_size=8, edits=0, workers=1, progress=False)


@pytest.fixture
def mine(small, tmp_path):
    """A copy of `small` to change."""
    return Path(shutil.copytree(small, tmp_path / "mine"))
