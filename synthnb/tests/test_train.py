"""A training learns, is the same whether or not it was interrupted, and keeps its result before anything can fail."""

import dataclasses
import pickle
import shutil
import signal
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from synthnb import train as module
from synthnb.data.generate import generate
from synthnb.data.library import Library
from synthnb.data.shards import SPLITS, DatasetError
from synthnb.data.splits import write_splits
from synthnb.models.checkpoint import load_model, read_record
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.synths.dexed import Dexed
from synthnb.train import Progress, Training, TrainSettings, choose_precision, loss_weights, pick, train

MODEL = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
TINY = TrainSettings(
    steps=20,
    batch_size=16,
    learning_rate=1e-3,
    warmup=5,
    source_dropout=1.0,
    validate_every=4,
    precision="32-true",
)  # so few steps teach nothing about edits
THREE = dataclasses.replace(TINY, steps=3, validate_every=2)


class Unplugged(RuntimeError):
    """What stops a training in these tests."""


@pytest.fixture
def unplug(monkeypatch):
    """`unplug(step, hook)` lets the next training stop there; it returns the steps at which trainings began."""
    started = []
    start = Progress.on_train_start
    monkeypatch.setattr(
        Progress, "on_train_start", lambda p, t, m: (started.append(t.global_step), start(p, t, m))
    )
    hooks = {name: getattr(Progress, name) for name in ("on_train_batch_end", "on_validation_end")}

    def stop_at(step, where="on_train_batch_end", error=Unplugged):
        for name, hook in hooks.items():

            def stopping(progress, trainer, *args, name=name, hook=hook):
                if trainer.global_step == step and name == where:
                    raise error
                hook(progress, trainer, *args)

            monkeypatch.setattr(Progress, name, stopping)
        return started

    return stop_at


def run(folder, out, training, stop=None, model=MODEL):
    if stop is None:
        return train(folder, out, model, training)
    with pytest.raises(Unplugged):
        train(folder, out, model, training)


def state(out):
    return torch.load(out / "last.ckpt", weights_only=True)


def assert_equal(one, other):
    """Of states: everything to the bit, but the clock."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            assert_equal(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_equal(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    "steps, every, more",
    [(22, 4, [(16, "on_validation_end")]), pytest.param(2000, 150, [], marks=pytest.mark.slow)],
)
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    short_dataset, tmp_path, unplug, steps, every, more
):
    training = dataclasses.replace(TINY, steps=steps, validate_every=every, source_dropout=0.25)
    _, curves = run(short_dataset, tmp_path / "whole", training)
    stops = [(step, "on_train_batch_end") for step in np.random.default_rng(0).integers(1, steps, 2).tolist()]
    stops, kept = sorted(stops + more), [0, 0]
    for step, where in stops:
        unplug(step, where)
        run(short_dataset, tmp_path / "parts", training, stop=True)
        kept.append((step - 1) // every * every)
        assert not list(tmp_path.glob("parts/*.safetensors"))
    started = unplug(None)
    _, others = run(short_dataset, tmp_path / "parts", training)
    assert started == kept
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert_equal(whole[part], parts[part])
    assert_equal(whole["callbacks"], parts["callbacks"])
    one, other = (load_model(tmp_path / name / "model.safetensors", "cpu") for name in ("whole", "parts"))
    assert_equal(one.state_dict(), other.state_dict())
    pd.testing.assert_frame_equal(curves, others)


def test_a_training_goes_on_after_interruptions(short_dataset, tmp_path, monkeypatch, short_space, unplug):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    unplug(7)
    run(short_dataset, out, TINY, stop=True)
    unplug(14)
    run(short_dataset, out, TINY, stop=True)
    moved = out.rename(tmp_path / "moved")  # to another machine, say
    started = unplug(None)
    path, curves = run(short_dataset, moved, dataclasses.replace(TINY, workers=1))
    assert started == [0, 4, 12]

    files = ["curves.csv", "last.ckpt", "model.safetensors"]
    assert sorted(file.name for file in moved.iterdir()) == files
    assert list(tmp_path.iterdir()) == [moved]  # nothing beside it
    assert list(curves.columns) == ["step", "train_loss", "val_loss"]
    validated = curves.dropna(subset="val_loss")
    assert validated["step"].tolist() == [4, 8, 12, 16, 20]
    losses = validated["val_loss"].tolist()
    assert losses[-1] < losses[0] < 3 and min(losses) > 0.1
    assert curves["train_loss"].notna().any()

    record = read_record(path)
    assert (record["steps"], record["clips"], record["batch_size"], record["seed"]) == (20, 200, 16, 0)
    assert record["dataset_space"] == "dexed" and record["clips_per_second"] > 0
    assert record["precision"] == "32-true" and record["library"] == 100
    assert [step for step, _ in record["val_loss"]] == [4, 8, 12, 16, 20]
    for file in moved.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes()
    model = load_model(path, "cpu")
    assert model.space == short_space and model.settings == MODEL

    again, same_curves = run(short_dataset, moved, TINY)  # nothing left to do
    assert read_record(again) | {"seconds": 0} == record | {"seconds": 0, "workers": 0}
    assert same_curves.equals(curves)
    assert_equal(load_model(again, "cpu").state_dict(), model.state_dict())


@pytest.mark.parametrize("every", [2, 1000])
def test_the_last_step_is_validated_and_kept(short_dataset, tmp_path, every):
    training = dataclasses.replace(THREE, validate_every=every)
    path, curves = run(short_dataset, tmp_path, training)
    assert curves.dropna(subset="val_loss")["step"].tolist()[-1] == 3
    assert state(tmp_path)["global_step"] == 3
    weights = path.read_bytes()
    steps = []
    hook = Training.training_step
    try:
        Training.training_step = lambda *args: (steps.append(1), hook(*args))[1]
        run(short_dataset, tmp_path, training)
    finally:
        Training.training_step = hook
    assert not steps and load_model(path) and len(path.read_bytes()) == len(weights)


def test_an_interrupt_is_one_and_the_next_one_too(short_dataset, tmp_path, unplug):
    handler = signal.getsignal(signal.SIGINT)
    unplug(1, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(short_dataset, tmp_path, THREE)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    "name, value",
    [("learning_rate", 1.0), ("precision", "bf16-mixed"), ("dim", 32), ("seed", 1), ("dataset", None)],
)
def test_a_training_is_not_resumed_with_other_settings(tmp_path, short_dataset, small, name, value):
    out = tmp_path / "out"
    run(short_dataset, out, THREE)
    kept = state(out)
    folder, model, training = short_dataset, MODEL, dataclasses.replace(THREE, batch_size=16)
    if name == "dataset":
        folder = generate(
            tmp_path / "other", load_model(out / "model.safetensors").space, 16, 2, 2, 1, workers=1
        )
    elif name == "dim":
        model = dataclasses.replace(MODEL, dim=value)
    else:
        training = dataclasses.replace(training, **{name: value})
    with pytest.raises(
        ValueError, match=rf"begun with {name} = .*; use another folder, or remove its last.ckpt"
    ):
        train(folder, out, model, training)
    assert_equal(state(out), kept)


class Code:
    """What a pickle of somebody else's may run."""

    def __reduce__(self):
        return pytest.fail, ("the file's code was run",)


@pytest.mark.parametrize("kind", ["empty", "cut", "code", "text", "other"])
def test_a_state_that_cannot_be_read_is_named_and_runs_nothing(short_dataset, tmp_path, kind):
    run(short_dataset, tmp_path, THREE)
    last = tmp_path / "last.ckpt"
    data = last.read_bytes()
    if kind == "code":
        torch.save({"global_step": 1, "state_dict": Code()}, last)
    elif kind == "other":
        torch.save([1, 2], last)
    else:
        last.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"hello\n"}[kind])
    with pytest.raises(
        ValueError, match=r"last.ckpt is cut short, or no state of a training; remove it to start"
    ):
        run(short_dataset, tmp_path, THREE)


def test_code_that_only_the_trainer_would_read_does_not_run_either(short_dataset, tmp_path):
    run(short_dataset, tmp_path, THREE)
    torch.save(
        state(tmp_path) | {"callbacks": pickle.dumps(Code()), "hyper_parameters": Code()},
        tmp_path / "last.ckpt",
    )
    with pytest.raises(ValueError, match=r"last.ckpt is cut short, or no state"):
        run(short_dataset, tmp_path, THREE)


def test_a_training_takes_in_what_is_rendered_meanwhile(short_dataset, tmp_path, unplug):
    folder, lengths = shutil.copytree(short_dataset, tmp_path / "data"), [100, 100, 32]
    splits = dict(zip(SPLITS, (16, 16, 200)))
    shard = (folder / "shard-00002.h5").rename(tmp_path / "later.h5")
    (folder / "stats.npz").unlink()
    write_splits(folder, lengths, splits)
    unplug(7)
    run(folder, tmp_path / "out", TINY, stop=True)
    shard.rename(folder / "shard-00002.h5")
    write_splits(folder, lengths, splits)
    started = unplug(None)
    path, _ = run(folder, tmp_path / "out", TINY)
    assert started == [0, 4]
    assert (read_record(path)["clips"], read_record(path)["library"]) == (200, 100)


def test_a_fresh_training_forgets_another(short_dataset, tmp_path):
    run(short_dataset, tmp_path, THREE)
    (tmp_path / "last.ckpt").unlink()
    path, curves = run(short_dataset, tmp_path, dataclasses.replace(THREE, steps=2, seed=3))
    assert curves["step"].max() == 2 and read_record(path)["seed"] == 3
    assert pd.read_csv(tmp_path / "curves.csv")["step"].max() == 2


def test_a_library_that_cannot_be_made_is_known_before_the_training(short_space, tmp_path):
    folder = generate(tmp_path / "data", short_space, 20, 2, 2, shard_size=30, edits=0, workers=1)
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["param_array"][7, 0] += 0.1
    with pytest.raises(DatasetError, match=r"training clip .* is not what seed 0 draws"):
        run(folder, tmp_path / "out", THREE)
    assert not (tmp_path / "out" / "last.ckpt").exists()


def test_a_model_is_kept_though_its_library_fails(short_dataset, tmp_path, monkeypatch):
    def fail(folder):
        raise MemoryError

    monkeypatch.setattr(Library, "build", fail)
    with pytest.raises(MemoryError):
        run(short_dataset, tmp_path, THREE)
    model = load_model(tmp_path / "model.safetensors")
    assert model.library is None and read_record(tmp_path / "model.safetensors")["library"] == 0


def test_what_is_heard_weighs_more(short_space):
    rng = np.random.default_rng(0)
    audible = pd.Series(rng.exponential(size=len(list(short_space))), [p.name for p in short_space])
    weights = loss_weights(short_space, audible)
    assert weights.shape == (short_space.width,) and weights.mean().item() == pytest.approx(1)
    per_parameter = {p.name: weights[short_space.columns[p.name]].sum().item() for p in short_space}
    scalars = [p.name for p in short_space if p.kind != "categorical"]
    order = audible[scalars].sort_values().index
    assert [per_parameter[name] for name in order] == sorted(per_parameter[name] for name in scalars)
    least, most = (min(per_parameter.values()), max(per_parameter[name] for name in scalars))
    assert 0 < least < most / 3


def test_what_is_audible_is_read_and_nothing_is_played(mine, short_space, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Dexed, "__init__", lambda synth: pytest.fail("a synth was opened"))
    seen, training = [], dataclasses.replace(THREE, batch_size=4)
    monkeypatch.setattr(module, "loss_weights", lambda *args: (seen.append(args), loss_weights(*args))[1])
    audible = np.random.default_rng(0).exponential(size=len(list(short_space)))
    with h5py.File(mine / "train.h5", "r+") as file:
        file.attrs["audible"] = audible.astype(np.float32)
    run(mine, tmp_path / "weighted", training)
    assert seen[0][0] == short_space and seen[0][1].tolist() == audible.astype(np.float32).tolist()
    with h5py.File(mine / "train.h5", "r+") as file:
        del file.attrs["audible"]
    assert "audible" not in capsys.readouterr().out
    run(mine, tmp_path / "even", training)
    assert capsys.readouterr().out.count("does not say what is audible; all parameters weigh the same") == 1
    assert len(seen) == 1


def test_the_rate_warms_up_and_decays(short_space):
    model = FlowModel(short_space, MODEL, torch.zeros(1, 64, 1), torch.ones(1, 64, 1))
    setup = Training(model, TINY, torch.ones(short_space.width)).configure_optimizers()
    schedule, rates = setup["lr_scheduler"]["scheduler"], []
    for _ in range(TINY.steps + 5):
        rates.append(schedule.get_last_lr()[0])
        setup["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(TINY.learning_rate / 5) and max(rates) == rates[4] == TINY.learning_rate
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * TINY.learning_rate)


@pytest.mark.parametrize(
    "gpu, bf16, avx512, amx, expected",
    [
        (True, True, False, False, "bf16-mixed"),
        (True, False, True, True, "32-true"),
        (False, True, True, False, "bf16-mixed"),
        (False, True, False, True, "bf16-mixed"),
        (False, True, False, False, "32-true"),
    ],
)
def test_the_precision_is_what_the_device_multiplies_natively(monkeypatch, gpu, bf16, avx512, amx, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto") == expected
    assert choose_precision("32-true") == "32-true"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("precision", "16-mixed", "no precision '16-mixed'; there are auto, 32-true, bf16-mixed"),
        ("steps", 0, "steps is 0; at least 1 is needed"),
        ("seed", -1, "seed is -1; at least 0"),
        ("batch_size", -1, "batch_size is -1; at least 1"),
    ],
)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{name: value})


def test_settings_are_picked_by_name():
    values = {"dim": 3, "steps": 7, "folder": "x"}
    assert pick(ModelSettings, values) == ModelSettings(dim=3)
    assert pick(TrainSettings, values) == TrainSettings(steps=7)


@pytest.fixture
def command(tmp_path, monkeypatch):
    def call(*values):
        paths = []
        for i, value in enumerate(values):
            paths.append(tmp_path / f"{i}.yaml")
            paths[-1].write_text(yaml.safe_dump(value))
        monkeypatch.setattr(sys, "argv", ["train", *map(str, paths)])
        module.main()

    return call


def test_it_runs_from_files_of_parameters(command, short_dataset, tmp_path, capsys):
    values = dataclasses.asdict(MODEL) | dataclasses.asdict(THREE) | {"steps": 9}
    command(values | {"folder": str(short_dataset), "out": str(tmp_path / "out")}, {"steps": 1})
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(" in 32-true") and said[-1] == str(tmp_path / "out" / "model.safetensors")
    assert state(tmp_path / "out")["global_step"] == 1


@pytest.mark.parametrize(
    "values, names", [({"folder": "x"}, "out"), ({"folder": "", "out": "", "step": 1}, "step")]
)
def test_a_parameter_that_does_not_exist_is_refused(command, capsys, values, names):
    with pytest.raises(SystemExit):
        command(values)
    assert f"unknown or missing: {names}; there are batch_size, " in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["auto", "32-true", "bf16-mixed"])
def test_it_trains_on_a_gpu_and_goes_on_there(short_dataset, tmp_path, unplug, precision):
    training = dataclasses.replace(TINY, precision=precision)
    unplug(7)
    run(short_dataset, tmp_path, training, stop=True)
    unplug(None)
    path, curves = run(short_dataset, tmp_path, training)
    assert curves["val_loss"].dropna().is_monotonic_decreasing
    assert load_model(path).unheard.is_cuda and load_model(path, "cpu").unheard.device.type == "cpu"
    assert "cuda" in read_record(path)["machine"]
