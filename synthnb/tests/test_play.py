"""Playing and scoring: what matcher and evaluation rely on."""

import threading

import numpy as np
import pytest

from synthnb.search import play
from synthnb.search.candidate import Press
from synthnb.search.distance import HeardDistance
from synthnb.search.play import REMEMBERED, Player
from synthnb.space import SpaceError
from synthnb.synths.dexed import Dexed
from synthnb.tools.scoring import ClockedPlayer


@pytest.fixture(scope="module")
def vectors(short_space):
    rng = np.random.default_rng(3)
    return np.stack([short_space.encode(*short_space.sample(rng)) for _ in range(9)])


@pytest.fixture
def distance(short_space, vectors):
    return HeardDistance(Player(short_space, 1).render(vectors[0]))


class Moody(Dexed):
    """Never sounds the same twice, as a synth with free phases; counts what all of its kind play."""

    played = 0

    def render(self, patch, note, seconds):
        type(self).played += 1
        return super().render(patch, note, seconds) * (1 + 0.01 * self.played)


@pytest.fixture
def moody(monkeypatch):
    monkeypatch.setattr(Moody, "played", 0)
    monkeypatch.setattr(play, "open_synth", lambda space: Moody())
    return Moody


class Staged:
    """Distances as given, with an early stop that notes its bounds."""

    def __init__(self, distance):
        self.distance, self.bounds = distance, []

    def __call__(self, sounds):
        return self.distance(sounds)

    def staged(self, clip, bound):
        self.bounds.append(bound)
        value = float(self.distance(clip[None])[0])
        return value if value <= bound else np.inf


def test_values_are_those_of_single_renders_whatever_the_number_of_threads(short_space, vectors, distance):
    synth = Dexed()
    sounds = [synth.render(*short_space.decode(v), short_space.seconds)[:1] for v in vectors]
    expected = [distance(sound[None])[0] for sound in sounds]
    for workers in (1, 3):
        values = Player(short_space, workers).score(distance, vectors)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, expected)


def test_a_press_is_what_is_played(short_space, vectors, distance):
    synth, player = Dexed(), Player(short_space, 1)
    played = Press(50)(synth, *short_space.decode(vectors[1]), short_space.seconds)
    sound = player.render(vectors[1], Press(50))
    np.testing.assert_array_equal(sound, synth.render(*played, short_space.seconds)[:1])
    assert player.score(distance, vectors[1:2], Press(50))[0] == distance(sound[None])[0]


def test_over_the_bound_is_infinite(short_space, vectors, distance):
    player, staged = Player(short_space, 2), Staged(distance)
    whole = player.score(distance, vectors)
    bound = np.median(whole)
    values = player.score(staged, vectors, bound=bound)
    assert set(staged.bounds) == {bound}
    np.testing.assert_array_equal(values, np.where(whole <= bound, whole, np.inf))


def test_what_sounds_the_same_is_measured_once(short_space, vectors, distance):
    patch, note = short_space.decode(vectors[0])
    muted = patch | {"op3_output_level": 0}
    alike = np.stack([short_space.encode(muted | {"op3_coarse": ratio}, note) for ratio in ("1", "2", "3")])
    staged, player = Staged(distance), Player(short_space, 1)
    exact = distance(player.render(alike[0])[None])[0]
    for bound, value in ((exact / 3, np.inf), (exact / 2, np.inf), (exact / 4, np.inf), (2 * exact, exact)):
        np.testing.assert_array_equal(player.score(staged, alike, bound=bound), value)
    assert staged.bounds == [exact / 3, exact / 2, 2 * exact]
    np.testing.assert_array_equal(player.score(staged, alike, bound=exact / 2), np.inf)
    np.testing.assert_array_equal(player.score(staged, alike), exact)
    assert len(staged.bounds) == 3
    assert player.score(Staged(distance), alike[:1])[0] == exact


def test_what_was_heard_is_what_was_scored(short_space, vectors, distance, moody):
    player = Player(short_space, 3)
    values = player.score(distance, vectors)
    heard = [player.render(v) for v in vectors]
    assert moody.played == len(vectors)
    np.testing.assert_array_equal(values, [distance(sound[None])[0] for sound in heard])
    np.testing.assert_array_equal(player.score(distance, vectors), values)
    assert moody.played == len(vectors)
    assert not np.array_equal(player.render(vectors[0], Press(40)), heard[0])


def test_the_best_of_many_are_remembered(short_space, distance, moody):
    rng = np.random.default_rng(5)
    many = np.stack([short_space.encode(*short_space.sample(rng)) for _ in range(REMEMBERED + 8)])
    player = Player(short_space, 2)
    values = player.score(distance, many)
    order = np.argsort(values)
    for i in order[:REMEMBERED]:
        player.render(many[i])
    assert moody.played == len(many)
    player.render(many[order[-1]])
    assert moody.played == len(many) + 1


def test_errors_come_through_and_leave_the_player_able(short_space, vectors, distance):
    player = Player(short_space, 2)
    with pytest.raises(SpaceError, match="NaN"):
        player.score(distance, np.full_like(vectors, np.nan))
    assert np.isfinite(player.score(distance, vectors[:2])).all()
    with pytest.raises(ValueError, match="-1 for all"):
        Player(short_space, 0)


def test_several_threads_may_share_a_player(short_space, vectors, distance):
    player, heard = Player(short_space, 2), {}
    threads = [
        threading.Thread(target=lambda i=i: heard.update({i: player.render(vectors[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, sound in heard.items():
        np.testing.assert_array_equal(sound, Player(short_space, 1).render(vectors[i]))
    assert len(heard) == 4


def test_a_clock_compares_with_the_bare_engine(short_space, vectors, distance):
    player = ClockedPlayer(short_space, 2)
    np.testing.assert_array_equal(
        player.score(distance, vectors, bound=0.5), Player(short_space, 1).score(distance, vectors, bound=0.5)
    )
    player.score(distance, vectors[:3], Press(50))
    rates = player.rates()
    assert rates["clips"] == len(vectors) + 3
    assert 0 < rates["score"] < rates["engine"]
    assert rates["ratio"] == rates["score"] / rates["engine"]
