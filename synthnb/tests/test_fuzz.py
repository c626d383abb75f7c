"""The fuzzer: seeded damages, what it tells apart, what it keeps; and a few dozen damaged inputs, as a sample."""

import sys

import numpy as np
import psutil
import pytest

from synthnb.space import SpaceError
from synthnb.synths import SynthCrash
from synthnb.tools import fuzz as fuzzer
from synthnb.tools.fuzz import KINDS, OUTCOMES, Reader, damage, damage_inside, fuzz, main


def refuse(path):
    raise SpaceError("no")


def stumble(path):
    raise KeyError("no")


def mutter(path):
    print("Traceback (most recent call last)", file=sys.stderr)


def swallow(path):
    try:
        raise MemoryError
    except MemoryError as error:
        raise SpaceError("no") from error


@pytest.fixture
def limits():
    """What memory this process may take is as before, after the test."""
    process = psutil.Process()
    before = process.rlimit(psutil.RLIMIT_AS)
    yield
    process.rlimit(psutil.RLIMIT_AS, before)


def test_damages_follow_their_seed():
    data = bytes(range(256)) * 20
    one, again, other = (damage(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again and len({data, one, other}) == 3


@pytest.mark.parametrize("kind", ["fxp", "checkpoint"])
def test_a_damaged_text_has_a_header_that_fits(kind, tmp_path):
    whole = KINDS[kind][0](tmp_path)[0].read_bytes()
    lengths = set()
    for seed in range(8):
        data = damage_inside(whole, np.random.default_rng(seed))
        if kind == "fxp":
            length = int.from_bytes(data[56:60], "big")
            assert length == len(data) - 60 == int.from_bytes(data[64:68], "little") + 32
        else:
            length = int.from_bytes(data[:8], "little")
            assert length - int.from_bytes(whole[:8], "little") == len(data) - len(whole)
        lengths.add(length)
    assert len(lengths) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize(
    "function, outcome",
    [
        (str, "accepted"),
        (refuse, "clean error"),
        (stumble, "traceback"),
        (mutter, "traceback"),
        (swallow, "memory"),
        (lambda path: bytes(2 << 30), "memory"),
    ],
)
def test_outcomes_are_told_apart(monkeypatch, limits, tmp_path, function, outcome):
    monkeypatch.setitem(KINDS, "space", (None, function))
    assert Reader({}).read("space", tmp_path)[0] == outcome


class Unsteady:
    """In place of a `Host`: what reading comes to, by the number of the input."""

    def __init__(self, *_, **__):
        pass

    def call(self, method, kind, path, timeout=None):
        number = int(path.name.split("-")[0]) if "-" in path.name else 0
        if number % 5 == 3:
            raise SynthCrash("reading did not answer for 30 s and was stopped")
        if number % 5 == 4:
            raise SynthCrash("reading crashed (SIGSEGV)")
        return OUTCOMES[number % 5], f"line {number % 5}"

    def close(self):
        pass


def test_what_fails_is_counted_and_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuzzer, "Host", Unsteady)
    counts, failed = fuzz(["space"], 60, 0, tmp_path, most=10)
    assert counts.loc["space"].to_dict() == dict(zip(OUTCOMES, (2, 2, 2, 2, 2, 0)))
    assert {int(path.name.split("-")[0]) for paths in failed.values() for path in paths} == {2, 3, 4, 7, 8, 9}
    assert sorted(p.name for p in (tmp_path / "space").iterdir()) == sorted(
        path.name for paths in failed.values() for path in paths
    )
    monkeypatch.setattr(fuzzer.tempfile, "mkdtemp", lambda prefix: tmp_path / "kept")
    assert main(["--seconds", "0.3", "--only", "space"]) == 1
    told = capsys.readouterr().out
    assert "space, hang: reading did not answer" in told and str(tmp_path / "kept") in told
    kept = next((tmp_path / "kept" / "space").iterdir())
    monkeypatch.setitem(KINDS, "space", (None, stumble))
    with pytest.raises(KeyError):
        main(["--replay", str(kept)])


@pytest.mark.parametrize(
    "kinds, most",
    [
        (["sound", "syx", "fxp", "space"], 36),
        pytest.param(["checkpoint", "dataset"], 100, marks=pytest.mark.slow),
    ],
)
def test_a_sample_of_damaged_inputs_is_read_or_refused(tmp_path, kinds, most):
    counts, failed = fuzz(kinds, 600, 0, tmp_path, most, workers=1)
    assert (counts.sum(axis=1) == most).all() and (counts > 0)[["accepted", "clean error"]].all(axis=None)
    assert not failed, list(failed)
