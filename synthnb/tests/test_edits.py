"""Edits: some parameters change, the rest stay, and datasets hold them beside the clips they were made of."""

import numpy as np
import pytest

from synthnb.data.draw import sample_clip, sample_clips
from synthnb.space import SPACES, ParameterSpace
from synthnb.space.edits import edit


@pytest.fixture(scope="module")
def edits(space, patches):
    """`(before, after)` for 200 edits, each a dict of patch and note."""
    rng = np.random.default_rng(0)
    made = [(patch, note, *edit(space, patch, note, rng)) for patch, note in patches]
    return [(patch | note._asdict(), new | new_note._asdict()) for patch, note, new, new_note in made]


def test_an_edit_is_a_patch_of_the_space(space, edits):
    for _, after in edits:
        patch = {p.name: after[p.name] for p in space.parameters}
        space.check(patch)
        assert (
            space["pitch"].low <= after["pitch"] <= space["pitch"].high
            and after["velocity"] == space.velocity
        )
        assert list(patch) == [p.name for p in space.parameters]


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_an_edit_is_what_its_vector_says(name):
    space = ParameterSpace.load(name)
    for i in range(100):
        rng = np.random.default_rng(i)
        patch, note = edit(space, *space.sample(rng), rng)
        assert note.start <= note.end
        vector = space.encode(patch, note)
        decoded, played = space.decode(vector)
        assert played == pytest.approx(note, abs=1e-6)
        np.testing.assert_array_equal(space.encode(decoded, played), vector)


def test_edits_are_small_and_large(space, edits):
    changed = np.array(
        [sum(after[name] != value for name, value in before.items()) for before, after in edits]
    )
    assert (changed <= 3).mean() > 0.1 and (changed >= 30).mean() > 0.1
    assert changed.max() < len(list(space)) and np.median(changed) < 30


def test_every_second_edit_nudges(space, edits):
    far = []
    for before, after in edits:
        moved = [p for p in space if p.kind != "categorical" and after[p.name] != before[p.name]]
        if len(moved) >= 10:
            gaps = [
                np.diff(p.to_quantile(np.array([p.to_unit(d[p.name]) for d in (before, after)])))
                for p in moved
            ]
            far.append(np.abs(gaps).mean())
    near = np.array(far) < 0.2
    assert 0.25 < near.mean() < 0.75 and len(far) > 20


def test_every_parameter_is_edited_and_nothing_is_changed_in_place(space, patches):
    rng, (patch, note) = np.random.default_rng(1), patches[0]
    before, seen = dict(patch), set()
    for _ in range(2000):
        new, new_note = edit(space, patch, note, rng)
        seen |= {name for name in patch if new[name] != patch[name]}
        seen |= {name for name in note._fields if getattr(note, name) != getattr(new_note, name)}
    assert patch == before
    assert seen == {p.name for p in space}


def test_an_edit_follows_its_generator(space, patches):
    one, again, other = (edit(space, *patches[0], np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == again != other


def test_clips_come_in_families(short_space, synth):
    floor = -12.0  # refuses many a patch
    clips = {i: clip for i, _, *clip in sample_clips(short_space, synth, 3, range(30, 60), floor, edits=2)}
    assert sorted(clips) == list(range(30, 60))
    for family in range(10, 20):
        patch, note, audio = sample_clip(short_space, synth, 3, family, floor)
        assert [patch, note] == clips[3 * family][:2]
        np.testing.assert_array_equal(audio, clips[3 * family][2])
        members = [clips[3 * family + i][:2] for i in range(3)]
        assert all(members[i] != members[j] for i, j in ((0, 1), (1, 2)))
    for i in (30, 31, 50, 59):  # one alone is what it is among others
        patch, note, audio = sample_clip(short_space, synth, 3, i, floor, edits=2)
        assert [patch, note] == clips[i][:2]
        np.testing.assert_array_equal(audio, clips[i][2])
    same = [clips[i][0][name] == clips[i - i % 3][0][name] for i in clips if i % 3 for name in clips[i][0]]
    assert 0.6 < np.mean(same) < 0.98
