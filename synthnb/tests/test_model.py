"""The model learns, samples by seed, is kept in one file, and a training goes on where it was interrupted."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from synthnb.data.audibility import audibility, loss_weights
from synthnb.data.feed import ClipData, Clips
from synthnb.data.shards import open_split
from synthnb.features import coarse
from synthnb.models.checkpoint import FORMAT, CheckpointError, load_model, read_record, save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.train import Progress, train

TINY = ModelSettings(sound=32, dim=64, hidden=64, depth=1, learning_rate=1e-3, warmup=5, steps=20)


@pytest.fixture(scope="module")
def batch(short_dataset, short_space):
    return next(iter(Clips(short_dataset / "train.h5", short_space, 8, endless=False)))


@pytest.fixture
def heard(model, batch):
    """What the field is told about `batch`."""
    with torch.no_grad():
        summary = model.hear(batch["mel"], batch["source_mel"], batch["known"])
        return model.field.hear(summary, 2 * batch["source"] - 1, batch["known"])


@pytest.fixture(scope="module")
def mels(short_dataset):
    with open_split(short_dataset / "train.h5") as file:
        return torch.from_numpy(file["mel_spec"][:2]).float()


@pytest.fixture
def model(short_dataset, short_space):
    torch.manual_seed(0)
    data = ClipData(short_dataset, 8)
    return FlowModel(short_space, TINY, data.mean, data.std).eval()


@pytest.fixture
def calls(model, monkeypatch):
    """`(t, rows)` of every evaluation of the vector field."""
    seen, field = [], model.field.forward

    def spy(x, t, *heard):
        seen.append((round(t[0].item(), 4), len(x)))
        return field(x, t, *heard)

    monkeypatch.setattr(model.field, "forward", spy)
    return seen


def fixed_loss(model, batch):
    with torch.no_grad():
        return np.mean([model.loss(batch, torch.Generator().manual_seed(i)).item() for i in range(10)])


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_a_few_clips_are_learnt_by_heart(model, batch, known):
    model.settings = dataclasses.replace(TINY, learning_rate=1e-2, source_dropout=0.0)
    batch = batch | {"known": torch.full((8, 1), known)}
    before = fixed_loss(model, batch)
    setup = model.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        optimizer.zero_grad()
        model.loss(batch, generator).backward()
        optimizer.step()
        schedule.step()
    after = fixed_loss(model, batch)
    # The linear guess, with or without the guess that a source is kept; a field of 0 would leave 1.3.
    assert (0.05 < before < 0.3) if known else (0.4 < before < 0.8)
    assert after < 0.75 * before


def test_every_weight_learns(model, batch):
    model.loss(batch, torch.Generator().manual_seed(0)).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle in ([], ["unheard"])  # hidden by chance, in one of ten clips


def test_the_loss_is_seeded(model, batch):
    one, again, other = (model.loss(batch, torch.Generator().manual_seed(s)).item() for s in (3, 3, 4))
    assert one == again != other


def test_a_hidden_sound_has_no_influence(model, batch):
    model.settings = dataclasses.replace(TINY, condition_dropout=1.0)
    other = batch | {"mel": batch["mel"].flip(0)}
    assert fixed_loss(model, batch) == fixed_loss(model, other)
    model.settings = dataclasses.replace(TINY, condition_dropout=0.0)
    assert fixed_loss(model, batch) != fixed_loss(model, other)


def test_the_rate_warms_up_and_decays(model):
    setup = model.configure_optimizers()
    schedule = setup["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(TINY.steps + 5):
        rates.append(schedule.get_last_lr()[0])
        setup["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(TINY.learning_rate / 5) and max(rates) == rates[4] == TINY.learning_rate
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * TINY.learning_rate)


def test_rows_of_a_batch_do_not_mix(model, batch, heard, short_space):
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(8, short_space.width, generator=generator), torch.rand(8, generator=generator)
    with torch.no_grad():
        velocity = model.field(x, t, heard)
        assert velocity.shape == x.shape
        for rows in ([5], [0, 3]):
            part = {name: values[rows] for name, values in batch.items()}
            summary = model.hear(part["mel"], part["source_mel"], part["known"])
            heard = model.field.hear(summary, 2 * part["source"] - 1, part["known"])
            alone = model.field(x[rows], t[rows], heard)
            torch.testing.assert_close(alone, velocity[rows], rtol=1e-4, atol=1e-5)


def test_samples_are_vectors_of_the_space_and_follow_the_seed(model, mels, short_space):
    state = torch.get_rng_state()
    drawn = model.sample(mels[0], 6, steps=3)
    assert drawn.shape == (6, short_space.width) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    for vector in drawn:
        patch, note = short_space.decode(vector)
        short_space.check(patch)
        short_space.encode(patch, note)
    np.testing.assert_array_equal(drawn, model.sample(mels[0], 6, steps=3))
    assert (drawn != model.sample(mels[0], 6, steps=3, seed=1)).any(axis=1).all()
    assert (drawn != model.sample(mels[1], 6, steps=3)).any()
    assert (torch.get_rng_state() == state).all()


def test_a_guidance_of_one_is_the_conditional_flow(model, mels, calls, short_space):
    with torch.no_grad():
        x = torch.randn(4, short_space.width, generator=torch.Generator().manual_seed(7))
        x = 0.5 * x
        mel, nothing = coarse(mels[:1]).expand(4, -1, -1, -1), torch.zeros(4, 1)
        summary = model.hear(mel, mel, nothing)
        heard = model.field.hear(summary, torch.zeros(4, short_space.width), nothing)
        for step in range(5):
            x = x + model.field(x, torch.full((4,), step / 5), heard) / 5
    expected = ((x + 1) / 2).clamp(0, 1).numpy()
    calls.clear()
    drawn = model.sample(mels[0], 4, steps=5, guidance=1.0, temperature=0.5, seed=7)
    assert calls == [(0.0, 4), (0.2, 4), (0.4, 4), (0.6, 4), (0.8, 4)]
    categorical = [short_space.columns[p.name] for p in short_space if p.kind == "categorical"]
    for block in categorical:
        np.testing.assert_allclose(drawn[:, block], expected[:, block], atol=1e-4)
    away = np.abs(drawn - short_space.from_quantiles(expected)).max(axis=0) > 1e-3
    assert away.mean() < 0.02  # a value on the edge between two steps may fall on either side


def test_guidance_acts_inside_its_interval_only(model, mels, calls):
    mel = mels[0]
    plain = model.sample(mel, 3, steps=4, guidance=1.0)
    np.testing.assert_array_equal(model.sample(mel, 3, steps=4, guidance=5.0, interval=(2.0, 3.0)), plain)
    calls.clear()
    guided = model.sample(mel, 3, steps=4, guidance=5.0, interval=(0.2, 0.6))
    assert calls == [(0.0, 3), (0.25, 6), (0.5, 6), (0.75, 3)]  # both halves in one call
    assert (guided != plain).any()


def test_midpoint_looks_half_a_step_ahead(model, mels, calls):
    euler = model.sample(mels[0], 3, steps=2, guidance=1.0)
    calls.clear()
    midpoint = model.sample(mels[0], 3, steps=2, guidance=1.0, midpoint=True)
    assert calls == [(0.0, 3), (0.25, 3), (0.5, 3), (0.75, 3)]
    assert (euler != midpoint).any()


def test_a_sound_is_encoded_once(model, mels, monkeypatch):
    rows, encode = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda mel: (rows.append(len(mel)), encode(mel))[1])
    model.sample(mels[0], 5, steps=3)
    assert rows == [1]


def test_a_checkpoint_describes_itself_and_gives_the_same_samples(model, mels, tmp_path):
    record = {"steps": 20, "val_loss": [[4, 1.5]], "clips": 200}
    path = save_model(model, tmp_path / "new" / "model.safetensors", record)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert read_record(path) == record
    loaded = load_model(path)
    assert (loaded.space, loaded.settings) == (model.space, model.settings)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[name], rtol=2**-11, atol=2**-24)

    before = model.space.to_quantiles(model.sample(mels[0], 8, steps=4))
    after = model.space.to_quantiles(loaded.sample(mels[0], 8, steps=4))
    assert np.mean(np.abs(before - after) > 0.02) < 0.02
    model.load_state_dict({name: value.half().float() for name, value in weights.items()})
    np.testing.assert_array_equal(model.sample(mels[0], 8, steps=4), loaded.sample(mels[0], 8, steps=4))


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no checkpoint at .*gone.safetensors; train one with notebook 02"
    ):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*moog.safetensors"):
        load_model("moog")


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=rf"no {FORMAT} checkpoint \(its format is None\)"):
        load_model(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="its format is pt"):
        read_record(path)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_damaged_checkpoint_is_refused(model, tmp_path, keep):
    path = save_model(model, tmp_path / "model.safetensors", {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a readable .safetensors file"):
        load_model(path)


def test_weights_that_do_not_fit_their_settings_are_refused(model, tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "unheard"}
    description = model.description()
    settings = json.dumps(description["settings"])
    save_file(
        weights, path, {"format": FORMAT, "record": "{}", "space": description["space"], "settings": settings}
    )
    with pytest.raises(CheckpointError, match=r"(?s)model.safetensors does not fit this version.*unheard"):
        load_model(path)


class Unplugged(RuntimeError):
    """What stops the training in the test below."""


def test_a_training_goes_on_after_interruptions(short_dataset, tmp_path, monkeypatch, short_space):
    monkeypatch.chdir(tmp_path)
    out, end = tmp_path / "out", Progress.on_train_batch_end
    settings = dataclasses.replace(TINY, source_dropout=1.0)  # so few steps teach nothing about edits

    def run(stop, folder=out):
        def hook(progress, trainer, *args):
            end(progress, trainer, *args)
            if trainer.global_step == stop:
                raise Unplugged

        monkeypatch.setattr(Progress, "on_train_batch_end", hook)
        steps = []
        start = Progress.on_train_start
        with monkeypatch.context() as patch:
            patch.setattr(
                Progress, "on_train_start", lambda p, t, m: (steps.append(t.global_step), start(p, t, m))
            )
            try:
                return steps, train(
                    short_dataset, folder, settings, batch_size=16, validate_every=4, audible_patches=1
                )
            except Unplugged:
                return steps, None

    assert run(stop=7) == ([0], None)
    assert run(stop=14) == ([4], None)
    moved = out.rename(tmp_path / "moved")  # to another machine, say
    assert run(stop=18, folder=moved) == ([12], None)
    assert not list(tmp_path.rglob("*.safetensors"))
    started, (path, curves) = run(stop=None, folder=moved)
    assert started == [16]

    assert sorted(file.name for file in moved.iterdir() if file.is_file()) == [
        "audibility.csv",
        "last.ckpt",
        "model.safetensors",
        "settings.json",
    ]
    assert torch.load(moved / "last.ckpt", weights_only=False)["global_step"] == 20
    assert list(tmp_path.iterdir()) == [moved]  # nothing beside it
    assert list(curves.columns) == ["step", "train_loss", "val_loss"]
    validated = curves.dropna(subset="val_loss")
    assert validated["step"].tolist() == [3, 7, 11, 15, 19]
    assert (
        validated["val_loss"].iloc[-1] < validated["val_loss"].iloc[0]
        and validated["val_loss"].between(0.1, 3).all()
    )
    assert curves["train_loss"].notna().any()

    record = read_record(path)
    assert (record["steps"], record["clips"], record["batch_size"], record["seed"]) == (20, 200, 16, 0)
    assert record["dataset_space"] == "dexed" and record["clips_per_second"] > 0
    assert [step for step, _ in record["val_loss"]] == [3, 7, 11, 15, 19]
    assert str(tmp_path) not in json.dumps(record)
    model = load_model(path)
    assert model.space == short_space and model.settings == settings

    again, same_curves = run(stop=None, folder=moved)[1]  # nothing left to do
    assert read_record(again)["steps"] == 20 and same_curves.equals(curves)
    for name, value in load_model(again).state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


def test_a_training_is_not_resumed_with_other_settings(tmp_path, short_dataset):
    settings = dataclasses.replace(TINY, steps=2)
    kept = {**dataclasses.asdict(settings), "learning_rate": 1.0}
    (tmp_path / "settings.json").write_text(json.dumps(kept))
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(
        ValueError, match=r"begun with learning_rate = 1.0, not 0.001; use another folder, or remove"
    ):
        train(short_dataset, tmp_path, settings, batch_size=16)
    assert json.loads((tmp_path / "settings.json").read_text()) == kept


def test_what_is_heard_weighs_more(short_space):
    audible = audibility(short_space, patches=2, workers=1)
    assert list(audible.index) == [p.name for p in short_space]
    assert (audible >= 0).all() and audible["pitch"] > 3 and audible["pitch"] > 3 * audible["op1_breakpoint"]
    pd.testing.assert_series_equal(audible, audibility(short_space, patches=2, workers=1))
    weights = loss_weights(short_space, audible)
    assert weights.shape == (short_space.width,) and weights.mean().item() == pytest.approx(1)
    per_parameter = {p.name: weights[short_space.columns[p.name]].sum().item() for p in short_space}
    scalars = [p.name for p in short_space if p.kind != "categorical"]
    order = audible[scalars].sort_values().index
    assert [per_parameter[name] for name in order] == sorted(per_parameter[name] for name in scalars)
    least, most = (min(per_parameter.values()), max(per_parameter[name] for name in scalars))
    assert 0 < least < most / 3


def test_a_fresh_training_forgets_the_curves_of_another(short_dataset, tmp_path, short_space):
    settings = dataclasses.replace(TINY, steps=2)
    stale = tmp_path / "curves-0000016" / "metrics.csv"
    stale.parent.mkdir()
    stale.write_text("step,train_loss,val_loss\n1,7.0,7.0\n19,7.0,7.0\n")
    other = pd.Series(7.0, index=[p.name for p in short_space], name="dB")
    other.to_csv(tmp_path / "audibility.csv", index_label="parameter")
    path, curves = train(
        short_dataset, tmp_path, settings, batch_size=16, validate_every=2, seed=3, audible_patches=1
    )
    assert pd.read_csv(tmp_path / "audibility.csv")["dB"].nunique() > 50  # measured again
    assert curves["step"].max() == 1 and curves[["train_loss", "val_loss"]].max().max() < 7
    assert read_record(path)["seed"] == 3
