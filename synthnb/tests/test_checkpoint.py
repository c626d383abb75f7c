"""A model is kept in one file that describes itself; what is wrong with a file is said."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from synthnb.data.shards import open_split
from synthnb.models import checkpoint
from synthnb.models.checkpoint import FORMAT, CheckpointError, load_model, read_record, save_model
from synthnb.models.flow import FlowModel, ModelSettings


@pytest.fixture(scope="module")
def mel(short_dataset):
    with open_split(short_dataset / "train.h5") as file:
        return torch.from_numpy(file["mel_spec"][0]).float()


@pytest.fixture
def model(short_space):
    torch.manual_seed(0)
    settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
    return FlowModel(
        short_space, settings, torch.full((1, 64, 1), -40.0), torch.full((1, 64, 1), 20.0)
    ).eval()


@pytest.fixture
def written(model, tmp_path):
    """Write a checkpoint whose metadata, and settings among them, are changed; None leaves one out."""
    settings = model.description()["settings"]
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}

    def write(metadata=(), tensors=weights, **changed):
        whole = {"format": FORMAT, "record": "{}", "space": model.space.text}
        whole |= {"settings": json.dumps(settings | changed)} | dict(metadata)
        path = tmp_path / "model.safetensors"
        save_file(tensors, path, {name: text for name, text in whole.items() if text is not None})
        return path

    return write


def test_it_describes_itself_and_gives_the_same_samples(model, mel, tmp_path):
    record = {"steps": 20, "val_loss": [[4, 1.5]], "clips": 200}
    path = save_model(model, tmp_path / "new" / "model.safetensors", record)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert read_record(path) == record
    loaded = load_model(path, "cpu")
    assert (loaded.space, loaded.settings) == (model.space, model.settings)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[name], rtol=2**-11, atol=2**-24)

    before = model.space.to_quantiles(model.sample(mel, 8, steps=4))
    after = model.space.to_quantiles(loaded.sample(mel, 8, steps=4))
    assert np.mean(np.abs(before - after) > 0.02) < 0.02
    model.load_state_dict({name: value.half().float() for name, value in weights.items()})
    np.testing.assert_array_equal(model.sample(mel, 8, steps=4), loaded.sample(mel, 8, steps=4))


def test_it_is_loaded_where_it_runs_fastest(written):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert {tensor.device.type for tensor in load_model(written()).buffers()} == {expected}
    assert {tensor.device.type for tensor in load_model(written(), "cpu").parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["moog", "gone.safetensors", "a folder"])
def test_a_missing_one_is_refused_with_those_that_there_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    for read in (load_model, read_record):
        with pytest.raises(
            CheckpointError, match=f"no checkpoint '{name}'; there are dexed, surge_human; or pass"
        ):
            read(name)


def test_the_state_of_a_training_is_no_model(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 3}, path)
    with pytest.raises(
        CheckpointError, match=r"last.ckpt is what a training goes on from; the model.safetensors"
    ):
        load_model(path)


def test_a_foreign_one_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=rf"no {FORMAT} checkpoint \(its format is None\)"):
        load_model(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="its format is pt"):
        read_record(path)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_damaged_one_is_refused(written, keep):
    path = written()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a readable .safetensors file"):
        load_model(path)


def test_the_pointer_of_a_file_that_git_lfs_keeps_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14000000\n")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a readable .safetensors file"):
        load_model(path)


@pytest.mark.parametrize("record", [None, "", "{", "[1]", "3", "[" * 100_000])
def test_a_broken_record_is_refused_where_it_is_read(written, record):
    path = written({"record": record})
    load_model(path, "cpu")
    with pytest.raises(CheckpointError, match=r"model.safetensors has no readable training record"):
        read_record(path)


@pytest.mark.parametrize(
    "settings", [None, "", "[]", "null", '{"dim": "wide"}', '{"dim": 1e400}', '{"field": []}']
)
def test_broken_settings_are_refused(written, settings):
    with pytest.raises(CheckpointError, match=r"model.safetensors does not fit this version of synthnb"):
        load_model(written({"settings": settings}))


@pytest.mark.parametrize("text", [None, "", "- 1", "name: x"])
def test_a_broken_space_is_refused(written, text):
    with pytest.raises(CheckpointError, match=r"model.safetensors does not fit this version of synthnb"):
        load_model(written({"space": text}))


def test_weights_that_do_not_fit_are_refused(model, written):
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, value in (("unheard", None), ("unheard", torch.zeros(7)), ("mean", torch.zeros(3, 64, 1))):
        others = {key: tensor for key, tensor in weights.items() if key != name}
        with pytest.raises(CheckpointError, match=r"(?s)model.safetensors does not fit this version"):
            load_model(written(tensors=others | ({} if value is None else {name: value})))
    more = {f"field.{i}": torch.zeros(1) for i in range(2)}
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*field.1"):
        load_model(written(tensors=weights | more))


@pytest.mark.parametrize("setting", ["channels", "sound", "dim", "hidden", "depth"])
@pytest.mark.parametrize("size", [1000, 10**9])
def test_a_small_file_cannot_ask_for_much_memory(written, setting, size, monkeypatch):
    """1,000 is as wide as some of its tensors; beyond that it is refused before anything is built."""
    built = []
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: built.append(tensor))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(written(**{setting: size}))
    assert all(tensor.is_meta for tensor in built)
    assert size == 1000 or not built


def test_settings_of_the_training_beside_those_of_the_model_are_passed_over(written):
    assert load_model(written(learning_rate=0.1, steps=3)).settings.dim == 64


def test_a_name_finds_what_comes_with_the_package_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dexed").mkdir()  # a folder of outputs, say
    assert checkpoint.checkpoint_path("dexed").parent == checkpoint.CHECKPOINTS
    assert checkpoint.checkpoint_path("dexed.safetensors").name == "dexed.safetensors"
