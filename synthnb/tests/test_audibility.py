"""How audible a parameter is, measured by playing it."""

import pandas as pd

from synthnb.data.audibility import audibility


def test_what_is_heard_is_measured(short_space):
    audible = audibility(short_space, patches=2, workers=1)
    assert list(audible.index) == [p.name for p in short_space]
    assert (audible >= 0).all() and audible["pitch"] > 3 and audible["pitch"] > 3 * audible["op1_breakpoint"]
    pd.testing.assert_series_equal(audible, audibility(short_space, patches=2, workers=1))
