"""What a search is made of: moves, the parameters they change, the population, and what moves are credited."""

import copy

import numpy as np
import pytest

from synthnb.data.library import Library
from synthnb.search.candidate import Candidate
from synthnb.search.credit import CURIOSITY, Credit
from synthnb.search.genes import Genes
from synthnb.search.moves import MOVES, library, tune
from synthnb.search.population import ELITES, SAME_BASIN, SIZE, Population
from synthnb.search.state import State
from synthnb.space import Note

NOTE = Note(60, 100, 0.0, 0.4)
KEY = ("pitch", "transpose")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def vectors(short_space):
    return np.stack([short_space.encode(*short_space.sample(each)) for each in map(rng, range(24))])


@pytest.fixture
def state(matcher, target, vectors):
    """A search of `target` with a dozen random patches."""
    state = matcher.begin([target])
    state.play(vectors[:12], "given")
    return state


def parents(state):
    return np.stack([c.vector for c in state.population])


def columns(space, names):
    return np.concatenate([np.arange(space.width)[space.columns[name]] for name in names])


def gaps(children, members):
    """How far each child is from the member that is nearest to it, by column."""
    far = np.abs(children[:, None] - members)
    return far[np.arange(len(children)), far.sum(axis=2).argmin(axis=1)]


# --- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOVES)
def test_a_move_proposes_patches_that_are_new_and_repeats_with_its_generator(state, name):
    found = MOVES[name](state, 7, rng(1))
    assert found.shape == (7, state.space.width) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    for vector in found:
        patch, _ = state.space.decode(vector)
        state.space.check(patch)
    new = np.abs(found[:, None] - parents(state)).max(axis=2).min(axis=1) > 0
    assert new.mean() > 0.5
    np.testing.assert_array_equal(MOVES[name](state, 7, rng(1)), found)
    assert not np.array_equal(MOVES[name](state, 7, rng(2)), found)


@pytest.mark.parametrize("name", ["cross", "copy", "nudge", "jump", "draw", "turn", "difference"])
def test_a_key_that_is_held_stays_whatever_is_mutated_or_crossed(state, name):
    def keys(vectors):
        decoded = [state.space.decode(vector) for vector in vectors]
        return {(note.pitch, patch["transpose"]) for patch, note in decoded}

    state.genes.hold(KEY)
    assert keys(MOVES[name](state, 60, rng())) <= keys(parents(state))
    names = [p.name for p in state.genes.parameters if not state.genes.free[list(state.space).index(p)]]
    assert sorted(names) == sorted(KEY)


def test_a_cross_is_of_whole_modules(state):
    members = parents(state)
    aligned = [state.genes.align(mine, other) for mine in members for other in members]
    for child in MOVES["cross"](state, 20, rng()):
        for of in state.space.modules.values():
            assert any((child[of] == each[of]).all() for each in aligned)


def test_a_copy_is_of_a_module_of_the_same_kind(state):
    space = state.space
    operators = [space.modules[f"op{i}"] for i in range(1, 7)]
    assert state.genes.like == [[f"op{i}" for i in range(1, 7)]]
    rest = np.setdiff1d(np.arange(space.width), np.concatenate(operators))
    for child in MOVES["copy"](state, 20, rng()):
        (mine,) = [v for v in parents(state) if (v[rest] == child[rest]).all()]
        changed = [of for of in operators if (child[of] != mine[of]).any()]
        assert len(changed) <= 2
        assert all(any((child[of] == mine[other]).all() for other in operators) for of in changed)


def test_a_turn_is_small_and_of_scalars_only(state):
    space, note = state.space, columns(state.space, ["start", "end"])  # which come in order, once decoded
    categories = columns(space, [p.name for p in space if p.kind == "categorical"])
    children = MOVES["turn"](state, 100, rng())
    gap = gaps(children, parents(state))
    assert gap[:, categories].max() == 0 and np.median(gap[gap > 0]) < 0.1
    again = np.stack([space.encode(*space.decode(child)) for child in children])
    np.testing.assert_allclose(np.delete(again - children, note, axis=1), 0, atol=1e-6)  # whole steps


def test_steps_grow_from_nudge_to_jump_and_categories_are_drawn_too(state):
    space = state.space
    categories = columns(space, [p.name for p in space if p.kind == "categorical"])
    steps, drawn = {}, {}
    for name in ("nudge", "jump", "draw"):
        children = MOVES[name](state, 200, rng())
        gap = gaps(space.to_quantiles(children), space.to_quantiles(parents(state)))
        scalars = np.delete(gap, categories, axis=1)
        steps[name] = np.median(scalars[scalars > 1e-4])
        drawn[name] = (gap[:, categories] > 0).any(axis=1).mean()
    assert steps["nudge"] < 0.5 * steps["jump"] and min(drawn.values()) > 0.1


def test_what_goes_back_less_far_stays_nearer(state, vectors):
    def gap(begun):
        found = state.model.sample(state.mel, 12, begun=(vectors[:12], begun), seed=1)
        return np.abs(found - vectors[:12]).mean()

    assert gap(0.95) < 0.7 * gap(0.5) < 0.7 * gap(0.1)


def test_an_edit_is_of_the_nearest_and_keeps_most_of_its_source(matcher, target, vectors):
    state = matcher.begin([target])
    state.play(vectors[:1], "given")
    edits = MOVES["edit"](state, 20, rng())
    assert 0.5 < (np.abs(edits - vectors[0]) < 1e-3).mean() < 0.99  # before it learns, too


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_guidance_is_as_it_was_asked_for(matcher, target, vectors, monkeypatch, guidance):
    state, asked = matcher.begin([target], guidance=guidance), []
    state.play(vectors[:4], "given")

    def sample(mel, count, sources=None, guidance=1.0, **_):
        asked.append(guidance)
        return np.resize(vectors, (count * (1 if sources is None else len(sources[1])), state.space.width))

    monkeypatch.setattr(matcher.model, "sample", sample)
    for name in ("noise", "edit", "renoise"):
        for seed in range(8):
            MOVES[name](state, 8, rng(seed))
    assert set(asked) == ({1.0, 2.0} if guidance is None else {guidance})


def test_the_library_gives_the_next_ones_every_time(model, matcher, target, short_dataset):
    knowing = copy.copy(model)
    knowing.library = Library.build(short_dataset)
    state = State(knowing, matcher.player, matcher.begin([target]).recordings)
    found = np.concatenate([library(state, count, rng()) for count in (5, 3)])
    np.testing.assert_array_equal(found, knowing.library.nearest(state.mel, 8))
    assert state.looked_up == 8
    assert library(matcher.begin([target]), 5, rng()).shape == (0, state.space.width)


def test_few_have_no_difference_to_add(matcher, target, vectors):
    state = matcher.begin([target])
    state.play(vectors[:3], "given")
    assert MOVES["difference"](state, 5, rng()).shape == (0, state.space.width)


def test_what_is_out_of_reach_is_not_tuned(matcher, tone, space):
    state = matcher.begin([tone])
    low, high = (space["pitch"].low, space["pitch"].high)
    patch = {**space.default_patch, "transpose": 0}
    vector = space.encode(patch, NOTE._replace(pitch=int(low)))
    assert state.transpose(vector, -1) is None
    moved, note = space.decode(state.transpose(vector, int(high - low) + 3))
    assert (note.pitch, moved["transpose"]) == (high, 3)
    state.play(vector[None], "given")
    assert tune(state, 8, rng()).shape in ((0, space.width), (1, space.width))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_swapped_modules_are_aligned_again(short_space, patches):
    genes = Genes(short_space)
    for patch, note in patches[:20]:
        mine, swapped = short_space.encode(patch, note), dict(patch)
        for blocks in short_space.interchangeable_in(patch):
            swapped = short_space.swap(swapped, blocks[0], blocks[-1])
        other = short_space.encode(swapped, note)
        np.testing.assert_array_equal(genes.align(mine, other), mine)
        elsewhere = short_space.encode(
            {**swapped, "algorithm": "1" if patch["algorithm"] != "1" else "5"}, note
        )
        assert genes.align(mine, elsewhere) is elsewhere  # wired otherwise: nothing to align


def test_a_nudge_stays_in_range_and_a_draw_follows_the_prior(short_space):
    genes, generator = Genes(short_space), rng()
    q = np.zeros(short_space.width, np.float32)
    level, algorithm = (
        list(short_space).index(short_space[name]) for name in ("op1_output_level", "algorithm")
    )
    values = []
    for _ in range(200):
        genes.nudge(q, level, 2.0, generator)
        values.append(q[genes.first[level]])
        genes.draw(q, algorithm, generator)
        assert q[short_space.columns["algorithm"]].sum() == 1
    assert min(values) >= 0 and max(values) <= 1 and np.std(values) > 0.2


# --- the population ---------------------------------------------------------------------------------------------------


def candidate(space, distance, algorithm=0, level=0.5):
    vector = np.zeros(space.width, np.float32)
    vector[space.columns["algorithm"].start + algorithm] = 1
    vector[space.columns["op1_output_level"]] = level
    return Candidate(vector, {}, NOTE, np.zeros((1, 8), np.float32), distance, "given")


def test_a_population_keeps_the_nearest_and_only_a_few_of_a_basin(short_space):
    population, generator = Population(short_space), rng()
    added = [candidate(short_space, generator.random(), i % 5, generator.random()) for i in range(200)]
    for each in added:
        population.add(each)
    distances = [c.distance for c in population]
    assert distances == sorted(distances) and len(population) == SIZE
    basins = [population.basin(c.vector) for c in population]
    assert {basins.count(basin) for basin in basins} <= set(range(1, SAME_BASIN + 1))
    assert population[0].distance == min(c.distance for c in added)
    assert population.worst == distances[-1]
    assert not population.add(candidate(short_space, 2.0))
    assert population.add(candidate(short_space, -1.0)) and population[0].distance == -1


def test_a_basin_is_full_before_the_population_is(short_space):
    population = Population(short_space)
    for i in range(SAME_BASIN):
        assert population.add(candidate(short_space, 1 + i / 100))
    assert not population.add(candidate(short_space, 2.0)) and population.worst == np.inf
    assert population.add(candidate(short_space, 0.5)) and len(population) == SAME_BASIN
    assert population.add(candidate(short_space, 2.0, algorithm=3))


def test_the_best_of_each_basin_is_kept_beside(short_space):
    population = Population(short_space)
    for algorithm in range(ELITES + 4):
        for distance in (1.5, 0.5, 1.0):
            population.add(candidate(short_space, distance + algorithm, algorithm))
    assert sorted(c.distance for c in population.elites.values()) == [0.5 + i for i in range(ELITES)]
    assert all(population.basin(c.vector) == basin for basin, c in population.elites.items())


def test_of_two_that_sound_the_same_the_nearer_stays(short_space):
    population = Population(short_space)
    assert population.add(candidate(short_space, 1.0)) and population.add(candidate(short_space, 1.1))
    assert not population.add(candidate(short_space, 1.0)) and not population.add(
        candidate(short_space, 1.001)
    )
    assert population.add(nearer := candidate(short_space, 0.999))
    assert population.add(candidate(short_space, 1.0, algorithm=3))
    assert [c.distance for c in population] == [0.999, 1.0, 1.1] and population[0] is nearer


def test_nothing_is_asked_about_twice(short_space, vectors):
    population = Population(short_space)
    np.testing.assert_array_equal(population.new(vectors[[0, 1, 0]]), vectors[:2])
    np.testing.assert_array_equal(population.new(vectors[:3]), vectors[2:3])
    assert population.new(vectors[:3]).shape == (0, short_space.width)


def test_the_nearer_are_picked_more_often(short_space):
    population, generator = Population(short_space), rng()
    for i in range(6):
        population.add(candidate(short_space, float(i), i))
    picked = [population.pick(generator).distance for _ in range(600)]
    counts = [picked.count(float(i)) for i in range(6)]
    assert counts[0] > counts[2] > counts[5] > 20


# --- credit -----------------------------------------------------------------------------------------------------------


def shares(credit, count=2000):
    generator = rng()
    chosen = [credit.choose(generator) for _ in range(count)]
    return {name: chosen.count(name) / count for name in credit.names}


def test_what_pays_is_preferred_and_the_rest_not_forgotten():
    credit = Credit(["good", "dear", "bad"])
    assert all(share == pytest.approx(1 / 3, abs=0.05) for share in shares(credit).values())
    for _ in range(60):
        credit.earn("good", 4.0, 1.0)
        credit.earn("dear", 4.0, 3.0)
        credit.earn("bad", 0.0, 1.0)
    found = shares(credit)
    assert found["good"] > 2 * found["dear"] > 4 * found["bad"] and found["bad"] > 0.7 * CURIOSITY / 3
    assert credit.used == {"good": 60.0, "dear": 180.0, "bad": 60.0}
    assert credit.earned == {"good": 240.0, "dear": 240.0, "bad": 0.0}


def test_what_has_stopped_paying_is_left():
    credit = Credit(["first", "then"])
    for _ in range(40):
        credit.earn("first", 4.0, 1.0)
        credit.earn("then", 0.0, 1.0)
    for _ in range(80):
        credit.earn("first", 0.0, 1.0)
        credit.earn("then", 4.0, 1.0)
    assert shares(credit)["then"] > 0.8
