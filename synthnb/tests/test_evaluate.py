"""Evaluation: every system on every target, results kept, and never mixed up between models or settings."""

import numpy as np
import pytest
import torch

from synthnb.evaluate.run import FLOOR, SYSTEMS, compare, evaluate, held_out_clips, summary
from synthnb.metrics import METRICS
from synthnb.models.checkpoint import load_model, save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.tools.costs import noise_floor


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
    tmp_path, short_dataset, checkpoint
):
    targets = held_out_clips(short_dataset, 2)
    first, second, out = checkpoint(0), checkpoint(1), tmp_path / "out" / "clips"

    def run(model, seconds=0.2):
        return evaluate(model, short_dataset, targets, out, seconds, refined=1, workers=1, steps=2)

    table = run(first)
    assert (
        table["target"].value_counts() == [len(SYSTEMS), len(SYSTEMS) - 1]
    ).all()  # one of the two was refined
    assert np.isfinite(table[list(METRICS)]).all(axis=None)
    distance = table.pivot(index="target", columns="system", values="distance")
    assert (distance["best of 32 neighbours"] <= distance["nearest neighbour"]).all()
    assert (distance["flow from noise, best of 32"] <= distance["flow, one sample"]).all()
    assert distance["flow, refined"].iloc[0] <= distance["flow, best of 32"].iloc[0]
    assert list(summary(table).index) == list(SYSTEMS)
    floor = noise_floor(load_model(first).space, 3)
    rows = summary(table, floor)
    assert list(rows.index) == [*SYSTEMS, FLOOR] and rows.loc[FLOOR, "n"] == 3
    assert rows.loc[FLOOR, "MSS"] == "0.00 [0.00, 0.00]"  # the DX7 repeats
    mean, low, high = compare(table, "flow, best of 32", "best of 32 random")
    assert low <= mean <= high

    written = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert run(first).equals(table)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == written  # nothing was done again
    other = run(second)
    ours = table["system"].str.contains("flow|edits")  # without a library, random edits go on from the flow's
    assert not np.allclose(other.loc[ours, "MSS"], table.loc[ours, "MSS"])
    assert np.allclose(
        other.loc[~ours, "MSS"], table.loc[~ours, "MSS"]
    )  # the baselines do not hang on the model
