"""Every command, in process: what it prints, what it writes, and how it says what is wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from synthnb import __version__
from synthnb.cli import UPDATE, main
from synthnb.models.checkpoint import save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.space import Note, ParameterSpace


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, short_space):
    """A model that was never trained, for clips of half a second."""
    torch.manual_seed(0)
    settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
    model = FlowModel(short_space, settings, torch.full((1, 64, 1), -40.0), torch.full((1, 64, 1), 20.0))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return save_model(model, path, {"steps": 0, "val_loss": [[step, 1.0] for step in range(100)]})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "two words.wav"
    t = np.arange(30_000) / 44_100
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * t) * np.exp(-3 * t), 44_100)
    return path


@pytest.fixture
def bank(tmp_path, synth, patches):
    """32 voices: 25 different ones, and 7 times the initial voice."""
    return synth.save_bank(tmp_path / "bank.syx", [(f"V{i}", p) for i, (p, _) in enumerate(patches[:25])])


def refused(capsys, *arguments) -> str:
    """Run a command that must fail in one line on stderr; returns that line."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("synthnb: ") and err.count("\n") == 1, (out, err)
    return err


def run(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


FAST = ["--seconds", 0.2, "--workers", 1]


def quick(checkpoint, out) -> list:
    return ["--model", checkpoint, "--out", out, *FAST]


def test_match_writes_its_files_and_says_how_close_it_came(capsys, tmp_path, sound, checkpoint, synth):
    out = tmp_path / "new" / "out"
    text = run(capsys, "match", sound, *quick(checkpoint, out))
    files = sorted(path.name for path in out.iterdir())
    assert files == ["match.json", "match.npz", "match.png", "match.wav", "target.wav", "two_words.syx"]
    report = json.loads((out / "match.json").read_text())
    assert synth.load_bank(out / "two_words.syx")[0] == ("two words", report["patch"])
    assert all(str(out / name) in text for name in files)
    assert "distance" in text and all(metric in text for metric in report["distances"])
    best = next(line for line in text.splitlines() if line.startswith("1 ")).split()
    assert [float(x) for x in best[-4:]] == pytest.approx(list(report["distances"].values()), abs=0.006)
    steps = [line for line in text.splitlines() if line[:3] in ("1. ", "2. ", "3. ")]
    assert [line[3:] for line in steps] == report["how_to_load"]
    assert "A3 (57)" in steps[-1]  # 220 Hz
    assert (out / "match.png").read_bytes().startswith(b"\x89PNG")


def test_match_finds_a_folder_for_a_sound_of_any_name(capsys, monkeypatch, tmp_path, sound, checkpoint):
    monkeypatch.chdir(tmp_path)
    shutil.copy(sound, "kick_$100_$200.wav")  # a formula to matplotlib
    text = run(capsys, "match", "kick_$100_$200.wav", "--model", checkpoint, *FAST)
    assert "How close" in text
    assert len(list(Path("outputs", "kick_$100_$200").iterdir())) == 6


def test_match_never_overwrites_the_recording(capsys, tmp_path, sound, checkpoint):
    for name in ("target.wav", "match.wav"):
        recording = Path(shutil.copy(sound, tmp_path / name))
        assert name in refused(capsys, "match", recording, *quick(checkpoint, tmp_path))
        assert recording.read_bytes() == sound.read_bytes()
        recording.unlink()


def test_match_takes_a_name_and_repeats_with_its_seed(capsys, tmp_path, sound, checkpoint):
    first = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ["--seconds", 0, "--seed", seed, "--name", "Bell"]
        run(capsys, "match", sound, *quick(checkpoint, tmp_path / folder), *arguments)
        first.append((tmp_path / folder / "Bell.syx").read_bytes())
    assert first[0] == first[1] != first[2]


def test_match_goes_on_with_what_is_kept(capsys, tmp_path, sound, checkpoint):
    out, go_on = tmp_path / "out", ["--continue", "--seconds", 1]
    assert "match.npz can't be read: No such file" in refused(
        capsys, "match", sound, *quick(checkpoint, out), *go_on
    )
    run(capsys, "match", sound, *quick(checkpoint, out))
    first = json.loads((out / "match.json").read_text())
    run(capsys, "match", sound, *quick(checkpoint, out), *go_on)
    then = json.loads((out / "match.json").read_text())
    assert then["renders"] > first["renders"] and then["seconds"] >= first["seconds"] + 1
    assert then["distance"] <= first["distance"] and then["first"] == first["first"]
    soundfile.write(other := tmp_path / "other.wav", soundfile.read(sound)[0][::2], 44_100)
    for sounds in ([other], [sound, "--more", other]):
        said = refused(capsys, "match", *sounds, *quick(checkpoint, out), *go_on)
        assert "match.npz is of another sound; leave out --continue" in said
    (out / "match.npz").write_bytes(b"no match")
    assert "no match, or damaged" in refused(capsys, "match", sound, *quick(checkpoint, out), *go_on)


def test_match_takes_more_notes_of_the_same_sound(capsys, tmp_path, sound, checkpoint, space, synth):
    notes = [tmp_path / f"{pitch}.wav" for pitch in (60, 67)]
    for path in notes:
        audio = synth.render(space.default_patch, Note(int(path.stem), 100, 0.0, 0.4), 0.5)
        soundfile.write(path, audio[0], 44_100)
    run(capsys, "match", sound, *quick(checkpoint, tmp_path / "out"), "--more", *notes)
    with np.load(tmp_path / "out" / "match.npz") as file:
        assert file["recordings"].shape == (3, 1, 22_050)
    copied = Path(shutil.copy(notes[0], tmp_path / "target.wav"))
    said = refused(capsys, "match", sound, *quick(checkpoint, tmp_path), "--more", copied)
    assert "target.wav" in said and "not its own" in said
    missing = ["--more", tmp_path / "none.wav"]
    assert "none.wav" in refused(capsys, "match", sound, *quick(checkpoint, tmp_path / "out"), *missing)


def test_match_shows_its_progress_on_one_line_of_a_terminal(capsys, monkeypatch, tmp_path, sound, checkpoint):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([str(a) for a in ["match", sound, *quick(checkpoint, tmp_path), "--seconds", 1]]) == 0
    err = capsys.readouterr().err
    assert err.count("\r") > 1 and err.count("\n") == 1
    assert "renders  distance" in err


def test_elsewhere_progress_is_a_line_now_and_then(capsys, monkeypatch, tmp_path, sound, checkpoint):
    monkeypatch.setitem(UPDATE, False, 1000.0)  # seconds
    monkeypatch.setenv("TQDM_MININTERVAL", "5")
    assert main([str(a) for a in ["match", sound, *quick(checkpoint, tmp_path), "--seconds", 1]]) == 0
    err = capsys.readouterr().err
    assert "\r" not in err
    assert len([line for line in err.splitlines() if "renders  distance" in line]) == 1
    command = ["generate", str(tmp_path / "set"), *"--train 4 --val 0 --test 0 --workers 1".split()]
    done = subprocess.run(
        [sys.executable, "-m", "synthnb", *command], capture_output=True, text=True, check=True
    )
    assert "4/4" in done.stderr.splitlines()[-1] and "\r" not in done.stderr


def test_match_refuses_what_it_cannot_use(capsys, tmp_path, sound, checkpoint):
    text = tmp_path / "notes.txt"
    text.write_text("no sound at all")
    arguments = quick(checkpoint, tmp_path / "out")
    assert "notes.txt: is not a sound file" in refused(capsys, "match", text, *arguments)
    assert "No such file" in refused(capsys, "match", tmp_path / "missing.wav", *arguments)
    missing = quick(tmp_path / "none.safetensors", tmp_path / "out")
    assert "there are dexed" in refused(capsys, "match", sound, *missing)
    assert not (tmp_path / "out").exists()
    assert "notes.txt" in refused(
        capsys, "match", sound, *quick(checkpoint, text)
    )  # a file where the folder goes


@pytest.mark.parametrize(
    "wrong",
    [
        "match x.wav --seconds -1",
        "match x.wav --seconds nan",
        "match x.wav --speed 9",
        "match x.wav --workers 0",
        "match x.wav --seed -1",
        "generate x --workers 0",
        "generate x --seed -1",
        "generate x --train -1",
        "generate x --part 3/2",
        "generate x --part 2",
        "subset x --out y --clips 1 --seed -1",
    ],
)
def test_options_are_checked_before_the_work(capsys, monkeypatch, tmp_path, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(wrong.split())
    assert stopped.value.code == 2
    assert re.findall(r"--\w+", wrong)[-1] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_before_the_search(capsys, monkeypatch, tmp_path, sound, checkpoint):
    monkeypatch.setattr("synthnb.search.matcher.Matcher.match", None)
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, "match", sound, *quick(checkpoint, tmp_path / "file"))


def test_an_interrupt_before_there_is_a_result_is_one_line(capsys, monkeypatch, tmp_path, sound, checkpoint):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("synthnb.search.play.Player.score", interrupted)
    assert main([str(a) for a in ["match", sound, *quick(checkpoint, tmp_path)]]) == 130
    assert capsys.readouterr().err.strip() == "synthnb: interrupted"


def test_an_interrupt_while_modules_are_imported_is_one_line(capsys, monkeypatch, sound):
    class Interrupt:
        def find_spec(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupt()])
    for name in [name for name in sys.modules if name.startswith("synthnb.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["match", str(sound)]) == 130
    assert capsys.readouterr().err.strip() == "synthnb: interrupted"


def test_info_describes_a_checkpoint(capsys, tmp_path, checkpoint):
    text = run(capsys, "info", checkpoint)
    assert "tiny.safetensors" in text and "space 'dexed' for dexed: 145 parameters, 0.5 s" in text
    assert '"dim": 64' in text and "steps: 0" in text
    assert all(len(line) < 250 for line in text.splitlines())
    shutil.copy(checkpoint, broken := tmp_path / "broken.safetensors")
    broken.write_bytes(broken.read_bytes()[:100])
    assert "not a readable .safetensors" in refused(capsys, "info", broken)
    assert "there are dexed" in refused(capsys, "info", "no-such-model")


def test_space_lists_its_parameters(capsys):
    text = run(capsys, "space", "dexed")
    space = ParameterSpace.load("dexed")
    assert f"vectors of {space.width} numbers" in text
    assert {p.name for p in space} <= set(text.split())
    assert "known: dexed, dexed_uniform" in refused(capsys, "space", "moog")


def test_generate_renders_a_dataset_and_goes_on_with_it(capsys, tmp_path):
    command = [
        "generate",
        tmp_path / "set",
        "--train",
        6,
        "--val",
        2,
        "--test",
        2,
        "--keep",
        "mel",
        "--workers",
        1,
    ]
    assert "6 train, 2 val and 2 test clips" in run(capsys, *command)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("shard*")}
    assert "6 train" in run(capsys, *command)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("shard*")} == made
    assert "seed = 0, not 1" in refused(capsys, *command, "--seed", 1)
    assert "must be multiples of 4" in refused(capsys, *command, "--edits", 3)
    assert "at least one training clip" in refused(capsys, "generate", tmp_path / "x", "--train", 0)


def test_check_names_problems_of_a_damaged_dataset(capsys, mine):
    assert "no problems" in run(capsys, "check", mine)
    (mine / "val.h5").write_bytes(b"no HDF5")
    assert main(["check", str(mine)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("PROBLEM") and "val.h5" in out[0]


def test_fit_makes_a_space_of_a_bank_counting_equal_voices_once(capsys, tmp_path, bank):
    out = tmp_path / "mine.yaml"
    assert "26 different voices of 64" in run(capsys, "fit", bank, bank, "--out", out, "--name", "mine")
    space = ParameterSpace.load(out)
    assert space.name == "mine" and len(space.parameters) == 145
    assert "space 'mine'" in run(capsys, "space", out)


def test_fit_leaves_out_what_is_no_bank_and_says_so(capsys, tmp_path, bank):
    (text := tmp_path / "notes.syx").write_text("no voice")
    banks = [bank, text, tmp_path / "missing.syx"]
    assert main([str(a) for a in ["fit", *banks, "--out", tmp_path / "mine.yaml", "--name", "mine"]]) == 0
    out, err = capsys.readouterr()
    assert "26 different voices of 32" in out
    assert [Path(line.split(":")[1].strip()) for line in err.splitlines()] == banks[1:]


def test_fit_names_the_damaged_one_of_several_banks_in_a_file(capsys, tmp_path, bank):
    whole = bank.read_bytes()
    bank.write_bytes(whole + whole[:-9])
    assert main(["fit", str(bank), "--out", str(tmp_path / "mine.yaml"), "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert "26 different voices of 32" in out and err.count("\n") == 1
    assert f"{bank}: dump 2 is truncated" in err and "left out" in err


def test_fit_refuses_too_few_voices_and_to_overwrite_what_it_reads(capsys, tmp_path, synth, patches, bank):
    one = synth.save_preset(tmp_path / "one.syx", patches[0][0], "ONE")
    to = ["--out", tmp_path / "mine.yaml", "--name", "mine"]
    assert "too few to fit" in refused(capsys, "fit", one, *to)
    assert not (tmp_path / "mine.yaml").exists()
    before = bank.read_bytes()
    assert "bank.syx" in refused(capsys, "fit", bank, "--out", bank, "--name", "mine")
    assert bank.read_bytes() == before


def test_a_space_is_not_surveyed_for_a_file_that_it_may_not_write(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("synthnb.synths.survey.survey", None)
    (edited := tmp_path / "edited.yaml").write_text("# mended by hand\n")
    assert "edited.yaml" in refused(capsys, "space", "any plugin", "--out", edited)
    assert "nowhere" in refused(capsys, "space", "any plugin", "--out", tmp_path / "nowhere" / "x.yaml")
    assert edited.read_text() == "# mended by hand\n"


def test_help_and_version_are_there_without_loading_anything_slow():
    code = (
        "import sys; from synthnb.cli import parser; print(parser().format_help()); "
        "print({'numpy', 'pandas', 'torch', 'tqdm'} & set(sys.modules))"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    commands = (
        "match",
        "info",
        "space",
        "surge",
        "generate",
        "featurize",
        "check",
        "subset",
        "export",
        "fit",
    )
    assert all(f"\n    {name}" in text for name in commands)
    assert text.strip().endswith("set()")
    command = [sys.executable, "-m", "synthnb", "--version"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text == f"synthnb {__version__}\n"
