"""Evaluation: every system on every target, results kept, and never mixed up between models or settings."""

import numpy as np
import pytest
import soundfile
import torch

from synthnb.evaluate import run as evaluation
from synthnb.evaluate.report import FLOOR, compare, noise_floor, summary
from synthnb.evaluate.run import LONGEST, SYSTEMS, code_digest, evaluate
from synthnb.evaluate.targets import held_out_clips, presets, recorded
from synthnb.metrics import METRICS
from synthnb.models.checkpoint import load_model, save_model
from synthnb.models.flow import FlowModel, ModelSettings


@pytest.fixture
def checkpoint(tmp_path, short_space):
    """A function that saves an untrained model of a seed."""

    def save(seed: int):
        torch.manual_seed(seed)
        settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
        model = FlowModel(short_space, settings, torch.zeros(1, 64, 1), torch.ones(1, 64, 1))
        return save_model(model, tmp_path / f"{seed}.safetensors", {})

    return save


def test_every_system_is_measured_and_results_are_kept_only_while_they_fit(
    tmp_path, short_dataset, checkpoint, monkeypatch
):
    monkeypatch.setattr(evaluation, "CANDIDATES", 10)
    targets = held_out_clips(short_dataset, 2)
    first, second, out = checkpoint(0), checkpoint(1), tmp_path / "out" / "clips"

    def run(model):
        return evaluate(model, short_dataset, targets, out, renders=24, searched=1, workers=1)

    table = run(first)
    counts = table["target"].value_counts()
    assert (counts == [len(SYSTEMS), len(SYSTEMS) - 1]).all()  # one of the two was searched for longer
    assert np.isfinite(table[list(METRICS)]).all(axis=None)
    distance = table.pivot(index="target", columns="system", values="distance")
    assert (distance["best of 32 neighbours"] <= distance["nearest neighbour"]).all()
    assert (distance["flow from noise, best of 32"] <= distance["flow, one sample"]).all()
    assert list(summary(table).index) == list(SYSTEMS)
    floor = noise_floor(load_model(first).space, 3)
    rows = summary(table, floor)
    assert list(rows.index) == [*SYSTEMS, FLOOR] and rows.loc[FLOOR, "n"] == 3
    assert rows.loc[FLOOR, "MSS"] == "0.00 [0.00, 0.00]"  # the DX7 repeats
    mean, low, high = compare(table, "search, 32", "best of 32 random")
    assert low <= mean <= high

    renders = table.groupby("system")["renders"].unique()
    assert list(renders[LONGEST]) == [24]
    assert all(list(renders[system]) == [10] for system in ("search, 32", "search without the flow, 32"))
    assert (distance[LONGEST] <= distance["search, 32"]).sum() == 1

    written = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert run(first).equals(table)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == written  # nothing was done again
    monkeypatch.setattr(evaluation, "code_digest", lambda: "another search")
    again = run(first)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")}.items().isdisjoint(written.items())
    timed = ["seconds"]
    assert again.drop(columns=timed).equals(table.drop(columns=timed))  # renders, not the clock, end a search
    other = run(second)
    ours = table["system"].str.contains("flow|search")  # without a library, all begin with the flow's
    assert not np.allclose(other.loc[ours, "MSS"], table.loc[ours, "MSS"])
    assert np.allclose(
        other.loc[~ours, "MSS"], table.loc[~ours, "MSS"]
    )  # the baselines do not hang on the model


def test_a_changed_search_is_told_by_its_code(tmp_path):
    (tmp_path / "search").mkdir()
    for name in ("features", "models", "evaluate"):
        (tmp_path / name).mkdir()
    for name in ("metrics.py", "evaluate/run.py", "search/matcher.py"):
        (tmp_path / name).write_text("SIGMA = 0.06\n")

    def digest(text: str) -> str:
        (tmp_path / "search" / "matcher.py").write_text(text)
        return code_digest(tmp_path)

    assert (
        digest("SIGMA = 0.06\n")
        == digest("SIGMA  =  0.06  # of the first steps\n")
        != digest("SIGMA = 0.07\n")
    )
    assert digest("SIGMA = 0.06\n") != code_digest()


def test_presets_are_played_once_each(tmp_path, short_space, synth, patches):
    voices = [(f"V{i}", patch) for i, (patch, _) in enumerate(patches[:4])]
    banks = [synth.save_bank(tmp_path / f"{i}.syx", voices) for i in range(2)]
    found = presets(banks, short_space, 3)
    assert len({target.name for target in found}) == 3
    assert len(presets(banks, short_space, 100)) == len(
        {tuple(p.items()) for _, p in synth.load_bank(banks[0])}
    )
    assert [t.name for t in presets(banks, short_space, 3)] == [t.name for t in found]


def test_a_recording_is_brought_to_the_length_of_the_space(tmp_path, short_space):
    t = np.arange(88_200) / 44_100
    soundfile.write(tmp_path / "note.wav", 0.3 * np.sin(2 * np.pi * 220 * t), 44_100)
    (target,) = recorded([tmp_path / "note.wav"], short_space)
    assert target.recorded and target.name == "note" and target.audio.shape == (1, 22_050)
