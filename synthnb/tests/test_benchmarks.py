"""The measuring of datasets: fresh processes and their memory, rates against plain reads."""

import os
import signal
import time

import numpy as np
import pytest

from synthnb.data.check import check
from synthnb.data.library import Library
from synthnb.tools.benchmarks import DIETS, engine_rate, feeding, measure, random_clips
from synthnb.tools.costs import costs


def hold(size):
    data = np.ones(size, np.uint8)
    time.sleep(0.5)
    return int(data[-1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_memory_is_that_of_the_call():
    little, much = measure(hold, 1), measure(hold, 200_000_000)
    assert little.result == much.result == 1 and much.seconds > 0.5
    assert 180 < much.memory - little.memory < 220


def test_what_goes_wrong_in_the_other_process_is_told():
    with pytest.raises(TypeError, match="hold"):
        measure(hold)
    with pytest.raises(RuntimeError, match="die ended its process"):
        measure(die)


def test_clips_of_a_synth_that_is_missing_are_small_and_sound(tmp_path, space):
    folder = random_clips(tmp_path, space, 2000)
    assert (
        sum(path.stat().st_size for path in folder.glob("shard-*")) / 2000
        < 2 * 64 * 100 + 4 * space.width + 200
    )
    assert check(folder) == []
    table = feeding(folder, batch_size=16, seconds=0.05)
    assert list(table.index) == ["coarse"] and (table["cached"] > 0).all()
    assert len(Library.build(folder)) == 1000


def test_rates(short_dataset, short_space):
    assert engine_rate(short_space, 20) > 10
    table = feeding(short_dataset, batch_size=16, seconds=0.05)
    assert list(table.index) == list(DIETS)
    assert (table["cached"] > 0).all() and (table["raw cached"] > 0).all()


def test_costs_says_where_the_time_goes(space):
    rows = costs(space, 40)
    assert rows["rendered"] == 1 and 0.8 < rows["kept"] <= 1 and 0.2 < rows["ratio"] < 1
    assert rows["kept_per_second"] <= rows["clips_per_second"]
