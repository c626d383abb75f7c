"""Figures: any text can be drawn, and a search says what its points are."""

import io

import numpy as np
import pandas as pd
import pytest

from synthnb import plots

ODD = r"kick_$100_$\frac"
AUDIO = 0.1 * np.ones((1, 22_050), dtype=np.float32)
TABLE = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], [ODD, "b"], [ODD, "d"])
RESULTS = pd.DataFrame({"target": [ODD, ODD], "system": ["a", ODD], "MSS": [1.0, 2.0]})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.compare(AUDIO, AUDIO, ODD),
        lambda: plots.spectrograms([np.zeros((1, 128, 50))], [ODD]),
        lambda: plots.histograms({ODD: {ODD: np.arange(3), "b": np.arange(4)}}),
        lambda: plots.entropies(TABLE),
        lambda: plots.versus({ODD: RESULTS}, "a", ODD, "MSS"),
    ],
)
def test_a_dollar_sign_is_a_dollar_sign(draw):
    draw().savefig(io.BytesIO())


def test_a_search_names_its_first_and_its_best():
    axes = plots.search([(1.0, 8, 1.234), (2.0, 24, 0.5)]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["first: 1.23", "best: 0.50"]
