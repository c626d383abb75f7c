"""How close is close: the scale, and what a match says of itself."""

import json

import pytest

from synthnb.search import reach as module
from synthnb.search.reach import WORDS, reach


@pytest.fixture
def scale(tmp_path, monkeypatch):
    path = tmp_path / "reached.json"
    path.write_text(
        json.dumps({"toy": {"seconds": 30, "own": [0.1 * i for i in range(10)], "recorded": [1.0, 1.5, 2.0]}})
    )
    monkeypatch.setattr(module, "REACHED", path)
    module.reached.cache_clear()
    yield
    module.reached.cache_clear()


def test_words_follow_what_was_reached_before(scale):
    distances = (0.2, 0.7, 1.2, 3.0)
    assert [reach("toy", distance)[0] for distance in distances] == list(WORDS)
    shares = [reach("toy", distance)[1] for distance in (-1, *distances)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1 and shares[-1] == 0


def test_nothing_is_said_of_a_synth_that_nothing_is_known_of(scale):
    assert reach("another", 0.1) is None
