"""The app as a user drives it, without a browser: upload, match, stop, choose, download; and what it refuses."""

import base64
import datetime
import re
import time

import numpy as np
import pytest
import torch

from synthnb.app.match import SHOWN, MatchApp, download, players
from synthnb.models.checkpoint import save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.sound import decode_sound, write_sound


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, short_space):
    """A model that was never trained, for clips of half a second."""
    torch.manual_seed(0)
    settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
    model = FlowModel(short_space, settings, torch.full((1, 64, 1), -40.0), torch.full((1, 64, 1), 20.0))
    return save_model(model, tmp_path_factory.mktemp("model") / "tiny.safetensors", {})


@pytest.fixture
def app(checkpoint):
    app = MatchApp(checkpoint, workers=1)
    yield app
    app.stop.click()
    app.wait(600)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    t = np.arange(30_000) / 44_100
    path = tmp_path_factory.mktemp("wav") / "sound.wav"
    write_sound(path, (0.3 * np.sin(2 * np.pi * 220 * t) * np.exp(-3 * t)).astype(np.float32)[None])
    return path.read_bytes()


def upload(app, name: str, content: bytes) -> None:
    """As the browser does it."""
    file = {"name": name, "type": "audio/wav", "size": len(content), "content": memoryview(content)}
    app.upload.value = ({**file, "last_modified": datetime.datetime.now(datetime.UTC)},)


def data_in(text: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', text)]


def text_of(app) -> str:
    parts = (app.status, app.error, app.table, app.details)
    return " ".join(part.value for part in parts)


def test_a_new_app_waits_for_a_sound(app):
    assert app.start.disabled and app.stop.disabled
    assert app.error.value == "" and app.result is None


def test_a_sound_is_uploaded_matched_heard_and_downloaded(app, wav, synth, tmp_path):
    app.seconds.value = 0.3
    upload(app, "my <b>sound.wav", wav)
    assert app.error.value == "" and not app.start.disabled
    assert "my &lt;b&gt;sound.wav" in app.listen.value
    app.start.click()
    app.wait(600)

    assert app.error.value == "" and not app.start.disabled and app.stop.disabled
    match = app.result
    assert (
        f"{match.best.distance:.2f}" in app.status.value
        and f"{match.history[-1][1]:,} renders" in app.status.value
    )
    assert all(name in app.table.value for name in ("MSS", "wMFCC", "SOT", "RMS", match.best.origin))
    assert bytes(app.picture.value).startswith(b"\x89PNG")
    assert "parameters differ from the default patch" in app.details.value
    assert all(step in app.details.value for step in [*synth.how_to_load, match.how_to_play()])
    assert 2 <= len(app.chosen.options) == len(app.shown) <= SHOWN and app.shown[0] is match.best

    for index, candidate in enumerate(app.shown[:2]):
        app.chosen.value = index
        target, heard = (decode_sound(data, "player") for data in data_in(app.listen.value))
        scale = 0.95 / max(np.abs(match.target).max(), np.abs(match.audio(candidate)).max())
        np.testing.assert_allclose(target, match.target * scale, atol=1e-4)
        np.testing.assert_allclose(heard, match.audio(candidate) * scale, atol=1e-4)
        preset, sound = data_in(app.files.value)
        (path := tmp_path / "preset.syx").write_bytes(preset)
        assert synth.load_preset(path) == candidate.patch and len(preset) == 4104
        np.testing.assert_array_equal(decode_sound(sound, "wav"), match.audio(candidate))
    assert 'download="my_b_sound.syx"' in app.files.value


def test_stop_ends_the_search_and_keeps_what_was_found(app, wav):
    app.seconds.value = 120
    upload(app, "sound.wav", wav)
    app.start.click()
    assert app.start.disabled and app.upload.disabled and not app.stop.disabled
    until = time.monotonic() + 600
    while "renders" not in app.status.value and time.monotonic() < until:
        time.sleep(0.05)
    app.stop.click()
    app.wait(600)
    assert app.result is not None and app.error.value == ""
    assert app.result.history[-1][0] < app.seconds.value
    assert not app.start.disabled and app.stop.disabled and app.files.value


def test_unusable_uploads_are_told_as_text(app, wav):
    for content, message in (
        (b"", "empty file"),
        (b"no sound", "not a sound file"),
        (wav[: len(wav) // 2], "truncated"),
    ):
        upload(app, "<i>x.wav", content)
        assert message in app.error.value and "&lt;i&gt;x.wav" in app.error.value
        assert "Traceback" not in text_of(app) and app.start.disabled
    upload(app, "good.wav", wav)
    assert app.error.value == "" and not app.start.disabled


def test_an_error_in_the_search_is_told_as_text(app, wav, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("the synth is gone")

    monkeypatch.setattr(app.matcher.synth, "render", fails)
    upload(app, "sound.wav", wav)
    app.start.click()
    app.wait(600)
    assert "the synth is gone" in app.error.value and "Traceback" not in text_of(app)
    assert not app.start.disabled


def test_a_picture_that_fails_ends_nothing(app, wav, monkeypatch):
    def fails(*_):
        raise ValueError("no picture")

    monkeypatch.setattr("synthnb.plots.compare", fails)
    app.seconds.value = 0
    upload(app, "kick_$100_$200.wav", wav)
    app.start.click()
    app.wait(600)
    assert app.result is not None and app.files.value and "no picture" in app.error.value


def test_examples_can_be_chosen(app):
    if len(app.example.options) < 2:
        pytest.skip("datasets/examples is not there: this is not a checkout")
    app.example.value = app.example.options[1][1]
    assert app.error.value == "" and not app.start.disabled and "<audio" in app.listen.value


def test_a_new_sound_clears_the_last_match(app, wav):
    app.seconds.value = 0
    upload(app, "one.wav", wav)
    app.start.click()
    app.wait(600)
    assert app.files.value
    upload(app, "two.wav", wav)
    assert app.result is None and app.files.value == app.table.value == app.details.value == ""


def test_a_missing_model_is_told_as_text(wav, tmp_path):
    app = MatchApp(tmp_path / "none.safetensors")
    assert "no checkpoint" in app.error.value and app.start.disabled
    upload(app, "sound.wav", wav)
    assert "no checkpoint" in app.error.value and app.start.disabled


def test_players_share_one_scale():
    loud, soft = (np.full((1, 4000), level, dtype=np.float32) for level in (3.0, 0.3))
    peaks = [
        np.abs(decode_sound(d, "x")).max()
        for d in data_in(players({"a": loud * [[1, -1] * 2000], "b": soft * [[1, -1] * 2000]}))
    ]
    assert peaks == pytest.approx([0.95, 0.095], abs=1e-3)


def test_a_download_link_holds_the_file(tmp_path):
    (path := tmp_path / 'a"b.syx').write_bytes(bytes(range(256)))
    assert data_in(download(path)) == [bytes(range(256))]
    assert 'download="a&quot;b.syx"' in download(path)
