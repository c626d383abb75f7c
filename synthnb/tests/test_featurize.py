"""Features added to a dataset: the same numbers as at its rendering, nothing half done, and Music2Latent's loading."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import h5py
import joblib
import numpy as np
import pytest
import torch

from synthnb.cli import main
from synthnb.data import featurize
from synthnb.data.featurize import add_features
from synthnb.data.generate import generate
from synthnb.data.shards import SPLITS, DatasetError, open_split
from synthnb.data.splits import write_splits
from synthnb.features import latents
from synthnb.features.latents import LatentsError, Music2Latent

COUNTS = {"val": 4, "test": 4, "train": 12}
LENGTHS = [8, 8, 4]


def render(folder, space, train=12, **settings):
    return generate(folder, space, train, 4, 4, shard_size=8, edits=0, workers=1, progress=False, **settings)


def add(folder, name="mel_spec", **settings):
    return add_features(folder, name, **{"device": "cpu", "workers": 1, "progress": False} | settings)


def shards(folder):
    return sorted(folder.glob("shard-*.h5"))


def arrays(path):
    with open_split(path) as file:
        return {name: values[:] for name, values in file.items()}


def without_mel(folder):
    """Take the spectrograms out of a dataset, as if it never had any."""
    for path in shards(folder):
        with h5py.File(path, "r+") as file:
            del file["mel_spec"]
    write_splits(folder, LENGTHS, COUNTS)
    (folder / "stats.npz").unlink()
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, short_space):
    """12 + 4 + 4 clips of half a second in shards of 8, with audio. Copy it before changing it."""
    return render(tmp_path_factory.mktemp("small") / "dataset", short_space)


@pytest.fixture
def mine(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "mine"))


@pytest.fixture
def loudest(monkeypatch):
    """Instead of latents, each clip's peak: quick, and seen to be called. Returns how many clips it was given."""
    seen = []

    def peaks(audio):
        seen.append(len(audio))
        return audio.abs().amax(dim=(1, 2))[:, None]

    monkeypatch.setattr(featurize, "_open", lambda name, device, weights: (peaks, "weights A"))
    return seen


def test_spectrograms_are_those_of_the_rendering(small, mine):
    add(without_mel(mine))
    for name in SPLITS:
        before, after = arrays(small / f"{name}.h5"), arrays(mine / f"{name}.h5")
        assert list(after) == list(before) and after["mel_spec"].dtype == np.float16
        error = np.abs(after["mel_spec"].astype(np.float32) - before["mel_spec"])
        # The audio was rounded to 11 bits, which shows where there is hardly any sound.
        assert error.mean() < 0.03 and error.max() < 3 and error[before["mel_spec"] > -50].max() < 0.2
        assert all(after[field].tobytes() == before[field].tobytes() for field in ("audio", "param_array"))
    with np.load(mine / "stats.npz") as stats, np.load(small / "stats.npz") as those:
        np.testing.assert_allclose(stats["mean"], those["mean"], atol=0.2)


def test_without_audio_the_clips_are_rendered_again(small, tmp_path, short_space):
    lean = without_mel(render(tmp_path / "lean", short_space, keep="mel"))
    add(lean, batch=3)
    for name in SPLITS:
        mel = arrays(lean / f"{name}.h5")["mel_spec"]
        assert mel.tobytes() == arrays(small / f"{name}.h5")["mel_spec"].tobytes()


def test_no_more_is_rendered_than_is_soon_taken(tmp_path, short_space, monkeypatch):
    lean = render(tmp_path / "lean", short_space, keep="compact")
    rendered = []

    def count(text, vectors):
        rendered.append(len(vectors))
        return np.zeros((len(vectors), 1, 22_050), np.float32)

    monkeypatch.setattr(featurize, "_render", count)
    with h5py.File(lean / "shard-00000.h5") as file, joblib.parallel_config("threading"):
        sounds = featurize._audio(file, lean, 1, workers=2)
        next(sounds)
        time.sleep(0.3)
        assert sum(rendered) <= 4
        assert len(list(sounds)) == 7 and sum(rendered) == 8


def test_a_batch_of_one_equals_a_batch_of_many(mine, tmp_path):
    other = shutil.copytree(without_mel(mine), tmp_path / "other")
    add(mine, batch=1)
    add(other, batch=8)
    for one, many in zip(shards(mine), shards(other)):
        assert arrays(one)["mel_spec"].tobytes() == arrays(many)["mel_spec"].tobytes()


def test_the_splits_show_the_column_in_a_moved_folder_too(mine, loudest):
    add(mine, "music2latent")
    mine = mine.rename(mine.with_name("elsewhere"))
    for name, count in COUNTS.items():
        split = arrays(mine / f"{name}.h5")
        peaks = np.abs(split["audio"]).max(axis=(1, 2))
        assert split["music2latent"].shape == (count, 1) and len(np.unique(peaks)) > 2
        np.testing.assert_array_equal(split["music2latent"][:, 0], peaks)


def test_a_second_run_does_only_what_is_missing(mine, loudest):
    add(mine, "music2latent")
    assert sum(loudest) == 20
    before = {path: path.stat().st_mtime_ns for path in mine.iterdir()}
    add(mine, "music2latent")
    assert sum(loudest) == 20 and {path: path.stat().st_mtime_ns for path in mine.iterdir()} == before
    with h5py.File(mine / "shard-00001.h5", "r+") as file:
        del file["music2latent"]
    add(mine, "music2latent")
    assert sum(loudest) == 28
    assert all("music2latent" in arrays(path) for path in shards(mine))


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads, safe on Linux only")
def test_twenty_kills_leave_no_trace(mine, tmp_path, loudest):
    compute, origin = featurize._open("music2latent", "cpu", None)

    def slowly(audio):
        time.sleep(0.004)
        return compute(audio)

    featurize._open = lambda name, device, weights: (slowly, origin)  # `loudest` puts the old one back
    undisturbed = shutil.copytree(mine, tmp_path / "undisturbed")
    begin = time.monotonic()
    add(undisturbed, "music2latent", batch=1)
    took = time.monotonic() - begin
    rng = random.Random(0)
    complete = 0
    for kill in range(20):
        if kill % 5 == 0:  # begin anew, so that kills also meet the first shards
            folder = Path(shutil.copytree(mine, tmp_path / f"killed {kill}"))
        if (child := os.fork()) == 0:
            try:
                add(folder, "music2latent", batch=1)
                time.sleep(60)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        for path in (*shards(folder), *(folder / f"{name}.h5" for name in SPLITS)):
            found, whole = arrays(path), arrays(undisturbed / path.name)
            assert set(whole) - set(found) <= {"music2latent"}
            assert all(values.tobytes() == whole[name].tobytes() for name, values in found.items())
            complete += "music2latent" in found
        if kill % 5 == 4:
            add(folder, "music2latent")
            names = {path.name for path in undisturbed.iterdir()}
            assert {path.name for path in folder.iterdir()} == names
            for name in sorted(names - {"stats.npz"}):
                found, whole = arrays(folder / name), arrays(undisturbed / name)
                assert {k: v.tobytes() for k, v in found.items()} == {
                    k: v.tobytes() for k, v in whole.items()
                }
    assert 0 < complete < 20 * 6  # the kills came neither all too early nor all too late


def test_a_full_disk_leaves_the_shard_as_it_was(mine, loudest, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = {path: path.read_bytes() for path in mine.iterdir()}
    monkeypatch.setattr(featurize.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add(mine, "music2latent")
    assert {path: path.read_bytes() for path in mine.iterdir()} == before


def test_a_growing_dataset_shows_the_column_again_once_all_its_clips_have_it(mine, loudest, short_space):
    add(mine, "music2latent")
    render(mine, short_space, train=25)
    assert "music2latent" not in arrays(mine / "train.h5")  # the last shards lack it, and would read as zeros
    add(mine, "music2latent")
    assert sum(loudest) == 20 + 8 + 8 + 1
    split = arrays(mine / "train.h5")
    np.testing.assert_array_equal(split["music2latent"][:, 0], np.abs(split["audio"]).max(axis=(1, 2)))


def test_a_virtual_file_of_another_order_keeps_its_rows(mine, loudest):
    """Other tools may join other shards in another order: the column goes where `param_array` of the clip went."""
    with h5py.File(mine / "shard-00001.h5", "r") as file:
        shapes = {name: (file[name].shape[1:], file[name].dtype) for name in ("audio", "param_array")}
    with h5py.File(mine / "train.h5", "w") as file:
        for name, (shape, dtype) in shapes.items():
            layout = h5py.VirtualLayout((7, *shape), dtype)
            layout[:4] = h5py.VirtualSource("shard-00002.h5", name, (4, *shape), dtype)
            layout[4:] = h5py.VirtualSource("shard-00001.h5", name, (8, *shape), dtype)[3:6]
            file.create_virtual_dataset(name, layout)
    add(mine, "music2latent")
    split = arrays(mine / "train.h5")
    np.testing.assert_array_equal(split["music2latent"][:, 0], np.abs(split["audio"]).max(axis=(1, 2)))


@pytest.mark.parametrize(
    "rows, of_shard",
    [(slice(0, 4), slice(0, 8, 2)), (slice(0, 16, 2), slice(0, 8)), (slice(3, 7), slice(0, 4))],
)
def test_rows_that_are_no_range_are_refused(mine, loudest, rows, of_shard):
    with h5py.File(mine / "train.h5", "r+") as file:
        shape, dtype = file["param_array"].shape[1:], file["param_array"].dtype
        del file["param_array"]
        layout = h5py.VirtualLayout((rows.stop, *shape), dtype)
        source = h5py.VirtualSource("shard-00001.h5", "param_array", (8, *shape), dtype)
        layout[rows] = source[of_shard]
        file.create_virtual_dataset("param_array", layout)
    with pytest.raises(
        DatasetError, match=r"train.h5 takes every so many rows of its shards; join whole ranges"
    ):
        add(mine, "music2latent")


def test_what_a_killed_run_left_is_gone_after_the_next(mine, loudest):
    for name in ("train.partial-9", "shard-00001.partial-music2latent-9"):
        (mine / name).touch()
    add(mine, "music2latent")
    assert not list(mine.glob("*.partial*"))


def test_a_split_keeps_its_fields_and_attributes(mine, loudest):
    with h5py.File(mine / "val.h5", "r+") as file:
        del file["audio"]
        file.attrs["first_clip"] = 7
        before = dict(file.attrs)
    add(mine, "music2latent")
    with open_split(mine / "val.h5") as file:
        assert (
            list(file) == ["attempts", "mel_spec", "music2latent", "param_array"]
            and dict(file.attrs) == before
        )


def test_latents_of_other_weights_are_not_mixed(mine, loudest, monkeypatch):
    add(mine, "music2latent")
    with h5py.File(mine / "shard-00001.h5", "r+") as file:
        del file["music2latent"]
    monkeypatch.setattr(featurize, "_open", lambda name, device, weights: (None, "weights B"))
    with pytest.raises(DatasetError, match=r"has music2latent of weights A, not of weights B; use the same"):
        add(mine, "music2latent")


def test_what_cannot_be_done_is_said_before_the_work(mine, tmp_path):
    with pytest.raises(DatasetError, match="no feature 'mel'; known: mel_spec, music2latent"):
        add(mine, "mel")
    with pytest.raises(DatasetError, match=r"no dataset at .*train.h5"):
        add(tmp_path)
    for path in shards(without_mel(mine)):
        with h5py.File(path, "r+") as file:
            del file["audio"]
            del file.attrs["space"]
    write_splits(mine, LENGTHS, COUNTS)
    with pytest.raises(DatasetError, match="neither audio nor the space that it could be rendered with"):
        add(mine)
    (mine / "shard-00001.h5").unlink()
    with pytest.raises(DatasetError, match=r"train.h5 needs shard-00001.h5"):
        add(mine)


# --- Music2Latent -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec():
    """The package's own model, made narrow."""
    reason = "needs Music2Latent: pip install music2latent==0.1.8 (CC-BY-NC 4.0: not for commercial use)"
    pytest.importorskip("music2latent", reason=reason)
    from music2latent import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "base_channels", 8)
        patch.setattr(models, "bottleneck_base_channels", 16)
        patch.setattr(models, "cond_channels", 16)
        patch.setattr(models, "num_bottleneck_layers", 1)
        patch.setattr(models, "attention_list_encoder", [0, 0, 0, 0, 1])
        yield models


@pytest.fixture(scope="module")
def weights(codec, tmp_path_factory):
    """A tiny checkpoint in the package's own format, of random weights."""
    torch.manual_seed(0)
    state = codec.UNet().state_dict()
    state = {name: value + 0.05 * torch.randn(value.shape) for name, value in state.items()}
    path = tmp_path_factory.mktemp("weights") / "music2latent.pt"
    torch.save({"gen_state_dict": state}, path)
    return path


@pytest.fixture
def no_hub(codec, monkeypatch):
    """The hub is out of reach."""
    from music2latent import inference

    def fail():
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(inference, "download_model", fail)
    monkeypatch.delenv(latents.VARIABLE, raising=False)


def test_latents_have_the_shape_of_the_field(weights, no_hub, codec):
    encoder = Music2Latent(weights)
    audio = torch.randn((1, 2, 4 * 44_100), generator=torch.Generator().manual_seed(1)) * 0.1
    stereo, left, right = encoder(audio), encoder(audio[:, :1]), encoder(audio[:, 1:])
    assert stereo.shape == (1, 128, 42) and left.shape == (1, 64, 42) and stereo.dtype == torch.float32
    assert torch.equal(stereo, torch.cat([left, right], dim=1))
    assert left.std() > 0.01 and not torch.allclose(left, right, atol=0.01) and stereo.abs().max() < 16.7
    loaded = encoder._codec.gen.state_dict()
    saved = torch.load(weights)["gen_state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


def test_latents_are_added_to_a_dataset(mine, tmp_path, weights, no_hub):
    add(mine, "music2latent", weights=weights, batch=3)
    encoder = Music2Latent(weights)
    for name in SPLITS:
        split = arrays(mine / f"{name}.h5")
        assert split["music2latent"].dtype == np.float16
        many = encoder(torch.from_numpy(split["audio"].astype(np.float32))).half()
        assert split["music2latent"].tobytes() == many.numpy().tobytes()
    with h5py.File(mine / "shard-00000.h5", "r") as file:
        origin = file["music2latent"].attrs["origin"]
    assert origin == encoder.origin and "CC-BY-NC" in origin and str(tmp_path) not in origin


def test_the_licence_is_told_once(capsys, weights, no_hub):
    latents._tell_licence.cache_clear()
    Music2Latent(weights)
    Music2Latent(weights)
    told = capsys.readouterr().err
    assert told == "Music2Latent and its weights are licensed CC-BY-NC 4.0: not for commercial use.\n"


def test_weights_are_looked_for_here_then_in_the_environment_then_on_the_hub(
    weights, no_hub, tmp_path, monkeypatch
):
    from music2latent import inference

    with pytest.raises(
        LatentsError, match=r"could not be downloaded; get music2latent.pt from https.*CC-BY-NC"
    ):
        Music2Latent()
    monkeypatch.setattr(inference, "download_model", lambda: None)
    monkeypatch.setattr(inference, "load_path_inference_default", str(weights))
    assert Music2Latent().origin == Music2Latent(weights).origin
    monkeypatch.setenv(latents.VARIABLE, str(tmp_path / "none.pt"))
    with pytest.raises(
        LatentsError, match=r"no Music2Latent weights at .*none.pt \(SYNTHNB_MUSIC2LATENT\); get"
    ):
        Music2Latent()
    assert Music2Latent(weights).origin
    monkeypatch.setenv(latents.VARIABLE, str(weights))
    with pytest.raises(LatentsError, match=r"no Music2Latent weights at .*other.pt; get them from https"):
        Music2Latent(tmp_path / "other.pt")
    assert Music2Latent().origin


def test_a_file_that_is_no_checkpoint_is_refused(weights, no_hub, tmp_path):
    (text := tmp_path / "text.pt").write_text("no weights")
    torch.save({"state_dict": {}}, other := tmp_path / "other.pt")
    for path in (text, other):
        with pytest.raises(LatentsError, match=f"{path.name} holds no Music2Latent weights; get them from"):
            Music2Latent(path)
    state = torch.load(weights)["gen_state_dict"]
    del state["encoder.gain.scale"]  # the package would say nothing
    torch.save({"gen_state_dict": state}, part := tmp_path / "part.pt")
    with pytest.raises(LatentsError, match=r"part.pt lacks encoder.gain.scale and 0 more"):
        Music2Latent(part)


class Code:
    """Unpickled, it would write the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("run",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_but_tensors_is_taken_from_weights(weights, no_hub, tmp_path, zipped):
    more = {
        "gen_state_dict": torch.load(weights)["gen_state_dict"],
        "loss": np.float64(1),
        "code": Code(tmp_path / "x"),
    }
    torch.save(more, path := tmp_path / "more.pt", _use_new_zipfile_serialization=zipped)
    audio = torch.randn((1, 1, 5632), generator=torch.Generator().manual_seed(1))
    assert torch.equal(Music2Latent(path)(audio), Music2Latent(weights)(audio))
    assert not (tmp_path / "x").exists()


def test_the_missing_package_is_named(mine, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "music2latent", None)
    assert main(["featurize", str(mine), "--feature", "music2latent"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("synthnb: music2latent is not installed; pip install music2latent==0.1.8 (CC-BY")
    assert error.count("\n") == 1


def test_featurize_is_a_command(mine, capsys, weights, no_hub):
    command = ["featurize", str(mine), "--feature", "music2latent", "--weights", str(weights)]
    for _ in range(2):
        assert main(command) == 0
        assert "every clip has music2latent" in capsys.readouterr().out
    assert arrays(mine / "train.h5")["music2latent"].shape == (12, 64, 5)
    assert main([*command[:1], "nowhere", *command[2:]]) == 2
    assert "no dataset at nowhere/train.h5" in capsys.readouterr().err
