"""What a release must hold: the README's snippets run, the wheel works by itself, matches come as close as they did."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from synthnb.models.checkpoint import load_model
from synthnb.search.matcher import Matcher
from synthnb.sound import prepare, read_sound

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "datasets" / "examples"
SNIPPETS = re.findall(
    r"^```(python|sh)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S
)

pytestmark = pytest.mark.release


def run(*command, cwd: Path, **environment: str) -> str:
    """Run a command; returns what it printed. What it says is shown if it fails."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=[code.splitlines()[0] for _, code in SNIPPETS])
def test_a_snippet_of_the_readme_runs(language, code, tmp_path):
    """Blocks marked `python` or `sh` run as they are; what takes longer or needs more is marked `console`."""
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    command = (sys.executable, "-c") if language == "python" else ("bash", "-ec")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(*command, code, cwd=tmp_path, PATH=path, PYTHONPATH=str(ROOT))


def test_the_wheel_matches_a_sound_outside_the_checkout(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    site, out = tmp_path / "site", tmp_path / "out"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", str(site), str(wheel), cwd=tmp_path)
    assert not {"tests", "tools"} & {path.name for path in (site / "synthnb").iterdir()}

    where = run(
        sys.executable, "-c", "print(__import__('synthnb').__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert where.startswith(str(site))
    sound = EXAMPLES / "gm_004_060.flac"
    match = (sys.executable, "-m", "synthnb", "match", str(sound), "--seconds", "1", "--out", str(out))
    run(*match, cwd=tmp_path, PYTHONPATH=str(site))
    assert (out / json.loads((out / "match.json").read_text())["preset"]).is_file()


#: MSS in dB of a short match, a tenth or more above what it was when this was written.
BOUNDS = {"gm_004_060": 2.9, "gm_011_072": 2.2, "gm_048_055": 7.1, "gm_080_069": 4.5}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_shipped_checkpoint_comes_as_close_as_it_did(name):
    sound = prepare(read_sound(EXAMPLES / f"{name}.flac"))
    match = Matcher(load_model("dexed", "cpu"), workers=1).match(sound, renders=500)
    assert match.metrics()["MSS"] < BOUNDS[name]
    assert match.best.note.pitch == match.key == int(name[-3:])
    assert abs(match.cents()) < 25
