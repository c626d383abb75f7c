"""Datasets: the layout, clips that depend on nothing but (space, seed, index), and resuming after anything."""

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from synthnb.data import audibility as measuring
from synthnb.data import generate as generating
from synthnb.data.draw import draw, sample_clip, sample_clips
from synthnb.data.generate import generate
from synthnb.data.shards import DatasetError, open_split, shard_lengths, unpack
from synthnb.features import coarse, log_mel
from synthnb.sound import loudness
from synthnb.space import ParameterSpace
from synthnb.synths import SynthCrash


def render(folder, space, train=12, val=4, test=4, **settings):
    return generate(
        folder,
        space,
        train,
        val,
        test,
        **{"shard_size": 8, "edits": 0, "workers": 1, "progress": False} | settings,
    )


def contents(folder):
    """Every array of every file of a dataset, as bytes."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {(path.name, name): array.tobytes() for name, array in arrays.items()}
        else:
            with h5py.File(path, "r") as file:
                found |= {(path.name, name): array[:].tobytes() for name, array in file.items()}
    return found


def split(folder, name, field="param_array"):
    with open_split(folder / f"{name}.h5") as file:
        return file[field][:]


def test_the_layout_is_that_of_the_design(dataset, space):
    names = [f"shard-{i:05d}.h5" for i in range(4)]
    assert sorted(path.name for path in dataset.iterdir() if path.is_file()) == sorted(
        [*names, "train.h5", "val.h5", "test.h5", "stats.npz"]
    )
    for name, clips in [(name, 32) for name in names] + [("train.h5", 96), ("val.h5", 16), ("test.h5", 16)]:
        with h5py.File(dataset / name, "r") as file:
            layout = {key: (value.shape, value.dtype) for key, value in file.items()}
            assert layout == {
                "audio": ((clips, 1, 176_400), np.float16),
                "mel_spec": ((clips, 1, 128, 401), np.float16),
                "param_array": ((clips, space.width), np.float32),
                "attempts": ((clips,), np.uint16),
            }
            attributes = dict(file.attrs)
            assert ParameterSpace.parse(attributes.pop("space")) == space
            versions = attributes.pop("versions")
            assert "dexed-py" in versions and "synthnb" in versions and "torch" in versions
            assert attributes == {
                "space_name": "dexed", "seed": 0, "loudness_floor": -55.0, "keep": "audio", "shard_size": 32,
                "edits": 0, "sample_rate": 44_100, "seconds": 4.0, "velocity": 100, "skipped": "[]",
            } | ({} if name in names else {"val": 16, "test": 16, "train": 96})  # fmt: skip


def test_no_path_of_this_machine_enters_a_dataset(dataset):
    for path in dataset.glob("*.h5"):
        data = path.read_bytes()
        assert str(dataset).encode() not in data and str(Path.home()).encode() + b"/" not in data


def test_a_clip_is_what_its_parameters_render(dataset, space, synth):
    with open_split(dataset / "test.h5") as file:
        for row in range(0, 16, 5):
            patch, note = space.decode(file["param_array"][row])
            audio = file["audio"][row].astype(np.float32)
            np.testing.assert_allclose(audio, synth.render(patch, note, 4.0)[:1], rtol=1e-3, atol=1e-6)
            assert loudness(audio) > -55.1
            mel = log_mel(torch.from_numpy(synth.render(patch, note, 4.0)[:1])).numpy()
            np.testing.assert_allclose(file["mel_spec"][row], mel, atol=0.04)


def test_the_splits_follow_each_other(dataset):
    whole = []
    for i in range(4):
        with h5py.File(dataset / f"shard-{i:05d}.h5", "r") as file:
            whole.append(file["param_array"][:])
    parts = [split(dataset, name) for name in ("val", "test", "train")]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(whole))
    assert len(np.unique(np.concatenate(parts), axis=0)) == 128


def test_a_clip_depends_on_space_seed_and_index_alone(small, tmp_path, short_space, synth):
    other = render(tmp_path / "other", short_space, shard_size=3, workers=2)
    for name in ("train", "val", "test"):
        for field in ("audio", "mel_spec", "param_array"):
            assert split(small, name, field).tobytes() == split(other, name, field).tobytes()
    patch, note, audio = sample_clip(short_space, synth, 0, 8, -55.0)  # 4 val, 4 test: the first of train
    np.testing.assert_array_equal(split(small, "train")[0], short_space.encode(patch, note))
    np.testing.assert_array_equal(split(small, "train", "audio")[0], audio.astype(np.float16))


def test_many_clips_are_those_sampled_one_by_one(short_space, synth):
    floor = -12.0  # refuses many a patch
    clips = {i: clip for i, _, *clip in sample_clips(short_space, synth, 3, range(20, 60), floor)}
    assert sorted(clips) == list(range(20, 60)) and list(clips) != sorted(clips)
    for i in range(20, 60, 3):
        patch, note, audio = sample_clip(short_space, synth, 3, i, floor)
        assert (patch, note) == (clips[i][0], clips[i][1]) and loudness(audio) >= floor
        np.testing.assert_array_equal(audio, clips[i][2])


def test_another_seed_gives_other_clips(small, tmp_path, short_space):
    other = render(tmp_path / "other", short_space, train=4, val=0, test=0, seed=1)
    assert (split(other, "train") != split(small, "val")).any(axis=1).all()


def test_audio_is_left_out_when_asked(small, tmp_path, short_space):
    lean = render(tmp_path / "lean", short_space, keep="mel")
    with open_split(lean / "train.h5") as file:
        assert set(file) == {"mel_spec", "param_array", "attempts"}
    assert split(lean, "train", "mel_spec").tobytes() == split(small, "train", "mel_spec").tobytes()


def test_a_compact_dataset_keeps_what_an_encoder_looks_at(small, tmp_path, short_space):
    lean = render(tmp_path / "lean", short_space, keep="compact")
    with open_split(lean / "train.h5") as file:
        assert {name: (field.shape, field.dtype) for name, field in file.items()} == {
            "coarse": ((12, 1, 64, 12), np.uint8),
            "param_array": ((12, 414), np.float32),
            "attempts": ((12,), np.uint16),
        }
    seen = coarse(torch.from_numpy(split(small, "train", "mel_spec")).float()).numpy()
    codes = split(lean, "train", "coarse")
    assert np.abs(unpack(codes) - seen).max() < 0.18  # half a step, and float16
    assert codes.min() == 0 and codes.max() > 200
    with np.load(lean / "stats.npz") as stats:
        np.testing.assert_allclose(stats["mean"], unpack(codes).mean(axis=0), atol=1e-3)
    for path in lean.glob("shard-*.h5"):
        with h5py.File(path) as file:
            assert dict(file["coarse"].attrs).items() >= {"add_offset": -80, "scale_factor": 80 / 255}.items()


def test_fields_lie_in_one_piece_with_a_checksum(small):
    for path in small.glob("shard-*.h5"):
        data = path.read_bytes()
        with h5py.File(path) as file:
            for field in file.values():
                at = field.id.get_offset()
                assert data[at : at + field.nbytes] == field[:].tobytes()
                assert field.attrs["crc32"] == zlib.crc32(field[:])


def test_it_is_kept_which_draw_was_loud_enough(tmp_path, short_space):
    floor = -12.0  # refuses many a patch
    folder = render(tmp_path, short_space, loudness_floor=floor, keep="compact", edits=1)
    attempts, vectors = split(folder, "train", "attempts"), split(folder, "train")
    assert len(set(attempts[::2])) > 2
    for i in range(0, 12, 2):  # 4 val, 4 test in families of two come before
        np.testing.assert_array_equal(
            short_space.encode(*draw(short_space, 0, 4 + i // 2, attempts[i])), vectors[i]
        )


def interrupt_after(monkeypatch, shards):
    """The next run is interrupted after so many shards, and shows each at once."""
    write, left = generating.write_shard, [None] * shards

    def write_some(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return write(*arguments)

    monkeypatch.setattr(generating, "EVERY", -1)
    monkeypatch.setattr(generating, "write_shard", write_some)


def test_splits_show_what_is_there_while_the_rest_is_rendered(small, tmp_path, short_space, monkeypatch):
    folder = tmp_path / "filling"
    for shards, clips in ((1, 1), (2, 9)):  # 3 val, 4 test, 13 train in shards of 8
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 1)
            render(folder, short_space, 13, 3, 4)
        assert len(list(folder.glob("shard-*"))) == shards and not (folder / "stats.npz").exists()
        assert [len(split(folder, name)) for name in ("val", "test", "train")] == [3, 4, clips]
        with h5py.File(folder / "train.h5") as file:
            assert file.attrs["train"] == 13
        assert split(folder, "train").any(axis=1).all()
    render(folder, short_space, 13, 3, 4)
    assert len(split(folder, "train")) == 13 and (folder / "stats.npz").exists()
    np.testing.assert_array_equal(split(folder, "test")[1:], split(small, "test")[:3])


def test_how_audible_parameters_are_is_measured_once_and_kept(tmp_path, space, monkeypatch):
    tiny = ParameterSpace.parse(space.text.replace("seconds: 4.0", "seconds: 0.1"))
    monkeypatch.setattr(generating, "AUDIBLE_COST", 0.05)
    measured = []
    measure = generating.audibility

    def counted(space, patches, *rest):
        measured.append(patches)
        return measure(space, patches, *rest)

    monkeypatch.setattr(generating, "audibility", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        render(tmp_path, tiny, 8)
    for name in ("val", "test", "train"):
        with open_split(tmp_path / f"{name}.h5") as file:
            dB = dict(zip([p.name for p in tiny], file.attrs["audible"], strict=True))
            assert dB["pitch"] > 1 and min(dB.values()) >= 0
    render(tmp_path, tiny, 8)
    assert measured == [2]
    render(tmp_path, tiny, 16)
    assert measured == [2, 3]


def test_a_change_that_crashes_the_synth_is_not_counted(short_space, synth, monkeypatch):
    class Fragile:
        channels, ceiling, pitches = 1, synth.ceiling, set()

        def render(self, patch, note, seconds):
            self.pitches.add(note.pitch)
            if len(self.pitches) > 1:
                self.pitches.discard(note.pitch)
                raise SynthCrash("it crashed")
            return synth.render(patch, note, seconds)

    monkeypatch.setattr(measuring, "open_space", lambda text: (short_space, Fragile()))
    found = measuring.audibility(short_space, patches=1, workers=1)
    assert found["pitch"] == 0 and (found > 0).sum() > 20 and np.isfinite(found).all()


def test_a_tiny_dataset_is_not_measured(small):
    with open_split(small / "train.h5") as file:
        assert "audible" not in file.attrs


def test_parts_show_what_all_of_them_have(tmp_path, short_space):
    render(tmp_path, short_space, part=(2, 3))  # clips 8 to 15; val and test are 0 to 7
    assert len(split(tmp_path, "train")) == 8 and not (tmp_path / "val.h5").exists()
    render(tmp_path, short_space, part=(1, 3))
    assert len(split(tmp_path, "train")) == 8 and len(split(tmp_path, "val")) == 4
    render(tmp_path, short_space, part=(3, 3))
    assert len(split(tmp_path, "train")) == 12 and (tmp_path / "stats.npz").exists()


def test_a_finished_dataset_is_left_alone(mine, short_space):
    before = {path: path.stat().st_mtime_ns for path in mine.iterdir()}
    render(mine, short_space)
    assert {path: path.stat().st_mtime_ns for path in mine.iterdir()} == before


@pytest.mark.parametrize("lost", ["shard-00001.h5", "shard-00002.h5", "train.h5", "val.h5", "stats.npz"])
def test_what_is_missing_is_made_again(small, mine, short_space, lost):
    kept = mine / "shard-00000.h5"
    before = kept.stat().st_mtime_ns
    (mine / lost).unlink()
    (mine / "shard-00001.partial-123").write_bytes(b"half a shard")
    render(mine, short_space)
    assert contents(mine) == contents(small)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("damaged", ["val.h5", "train.h5"])
def test_a_split_cut_short_is_made_again(small, mine, short_space, damaged):
    (mine / damaged).write_bytes((mine / damaged).read_bytes()[:1000])
    render(mine, short_space)
    assert contents(mine) == contents(small)


def test_a_growing_dataset_keeps_its_val_and_test_clips(small, mine, short_space):
    render(mine, short_space, train=25)
    for name in ("val", "test"):
        np.testing.assert_array_equal(split(mine, name), split(small, name))
    train = split(mine, "train")
    assert len(train) == 25
    np.testing.assert_array_equal(train[:12], split(small, "train"))
    assert [len(h5py.File(path)["param_array"]) for path in sorted(mine.glob("shard-*"))] == [8, 8, 8, 8, 1]
    mel = split(mine, "train", "mel_spec").astype(np.float64)
    np.testing.assert_allclose(np.load(mine / "stats.npz")["mean"], mel.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize(
    "settings, difference",
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"loudness_floor": -40.0}, "loudness_floor = -55.0, not -40.0"),
        ({"keep": "mel"}, "keep = audio, not mel"),
        ({"shard_size": 5}, "shard_size = 8, not 5"),
    ],
)
def test_another_recipe_is_refused_by_its_difference(small, short_space, settings, difference):
    with pytest.raises(DatasetError, match=f"shard-00000.h5 was made with {difference}; use an empty folder"):
        render(small, short_space, **settings)


def test_another_space_is_refused(small, space):
    with pytest.raises(
        DatasetError, match="was made with space = another, not this one; use an empty folder"
    ):
        render(small, space)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train": 0}, "at least one training clip is needed"),
        ({"val": -1}, "at least one training clip is needed"),
        ({"shard_size": 0}, "at least one training clip is needed"),
        ({"edits": 2}, "'train': 12.* with 2 edits each in shards of 8: all must be multiples of 3"),
        ({"edits": 2, "val": 3, "test": 3}, "with 2 edits each in shards of 8: all must be multiples of 3"),
        ({"keep": "sound"}, "keep sound: it is one of audio, mel, compact"),
        ({"seed": -1}, "seed -1: it is 0 or more"),
        ({"workers": 0}, "0 workers render nothing"),
        ({"part": (3, 2)}, "part 3 of 2: the first is 1"),
    ],
)
def test_the_impossible_is_refused_before_anything_is_written(tmp_path, short_space, settings, message):
    with pytest.raises(DatasetError, match=message):
        render(tmp_path / "new", short_space, **settings)
    assert not (tmp_path / "new").exists()


def test_a_dataset_without_val_and_test_opens(tmp_path, short_space):
    folder = render(tmp_path, short_space, train=3, val=0, test=0)
    assert (len(split(folder, "train")), len(split(folder, "val")), len(split(folder, "test"))) == (3, 0, 0)


def test_a_moved_folder_still_opens(small, mine):
    moved = mine.rename(mine.with_name("elsewhere"))
    assert contents(moved) == contents(small)
    assert split(moved, "train").any()


def test_a_missing_shard_is_named(mine):
    (mine / "shard-00001.h5").unlink()
    with pytest.raises(DatasetError, match=r"train.h5 needs shard-00001.h5"):
        open_split(mine / "train.h5")
    assert open_split(mine / "val.h5")  # lies in the first shard


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no dataset at .*train.h5; render one with notebook 01"):
        open_split(tmp_path / "train.h5")
    (tmp_path / "train.h5").write_bytes(b"not HDF5 at all")
    with pytest.raises(DatasetError, match=r"train.h5 is not a readable HDF5 file"):
        open_split(tmp_path / "train.h5")


def test_stats_are_those_of_the_training_clips(dataset):
    mel = split(dataset, "train", "mel_spec").astype(np.float64)
    with np.load(dataset / "stats.npz") as stats:
        assert {name: array.dtype for name, array in stats.items()} == {"mean": np.float32, "std": np.float32}
        np.testing.assert_allclose(stats["mean"], mel.mean(axis=0), atol=1e-3)
        np.testing.assert_allclose(stats["std"], mel.std(axis=0), atol=1e-2)


def test_a_silent_space_is_refused(tmp_path, short_space, monkeypatch):
    rows = [
        f"  op{op}_output_level: {{kind: integer, low: 0, high: 1, module: op{op}}}" for op in range(1, 7)
    ]
    lines = [line for line in short_space.text.splitlines() if "_output_level:" not in line]
    at = lines.index("parameters:") + 1
    silent = ParameterSpace.parse("\n".join([*lines[:at], *rows, *lines[at:]]))
    monkeypatch.setattr("synthnb.data.draw.ATTEMPTS", 5)
    message = (
        "clip 0: 5 patches of space 'dexed' in a row were below -55.0 LUFS; widen its prior or lower the loud"
    )
    with pytest.raises(DatasetError, match=message):
        render(tmp_path, silent)
    assert not (tmp_path / "shard-00000.h5").exists() and not (tmp_path / "train.h5").exists()


def test_shards_hold_all_clips():
    assert shard_lengths(20, 8) == [8, 8, 4] and shard_lengths(16, 8) == [8, 8] and shard_lengths(3, 8) == [3]
