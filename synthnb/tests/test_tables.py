"""Whole vectors at once, against one parameter after the other: the same bits."""

import numpy as np
import pytest

from synthnb.space import SPACES, ParameterSpace
from synthnb.space.parameter import Parameter


@pytest.fixture(params=sorted(path.stem for path in SPACES.glob("*.yaml")))
def any_space(request):
    return ParameterSpace.load(request.param)


def vectors(space, count=60):
    """Anywhere, partly out of range; where patches of the prior are; on the corners and defaults of parameters."""
    rng = np.random.default_rng(1)
    inside = [space.encode(*space.sample(rng)) for _ in range(count)]
    wild = rng.uniform(-0.1, 1.1, (count, space.width)).astype(np.float32)
    corners = rng.choice(np.float32([0, 0.25, 0.5, 0.75, 1]), (count, space.width))
    default = space.encode(space.default_patch, space.sample(rng)[1])
    return np.concatenate([inside, wild, corners, [default, np.nextafter(default, np.float32(2))]])


def test_decoding_and_encoding(any_space):
    for vector in vectors(any_space):
        patch, note = any_space.decode(vector)
        expected = {}
        for p in any_space:
            block = np.float64(vector[any_space.columns[p.name]])
            expected[p.name] = p.from_unit(block.argmax() if p.kind == "categorical" else block[0])
        assert list(patch) == [p.name for p in any_space.parameters]
        assert {k: (type(v), v) for k, v in patch.items()} == {
            k: (type(expected[k]), expected[k]) for k in patch
        }
        assert note == any_space.note(expected)
        coded = np.zeros(any_space.width, np.float32)
        for p in any_space:
            at, unit = any_space.columns[p.name].start, p.to_unit({**patch, **note._asdict()}[p.name])
            coded[at + unit if p.kind == "categorical" else at] = 1 if p.kind == "categorical" else unit
        assert any_space.encode(patch, note).tobytes() == coded.tobytes()


@pytest.mark.parametrize("name", ["to_quantile", "from_quantile"])
def test_quantiles(any_space, name):
    every = vectors(any_space)
    every = np.concatenate([every, any_space.to_quantiles(every)])
    expected = every.copy()
    for p in any_space:
        if p.kind != "categorical":
            at = any_space.columns[p.name].start
            expected[:, at] = getattr(Parameter, name)(p, every[:, at].astype(np.float64))
    convert = getattr(any_space, f"{name}s")
    assert convert(every).tobytes() == expected.tobytes()
    assert convert(every[5]).tobytes() == expected[5].tobytes()
    assert convert(every.astype(np.float64).reshape(2, -1, any_space.width)).tobytes() == expected.tobytes()
    assert convert(every[:0]).shape == (0, any_space.width)
