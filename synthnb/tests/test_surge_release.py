"""`make surge` against a server on loopback: a good release, and everything that can be wrong with it."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from synthnb.synths import SynthError
from synthnb.synths.find import folders
from synthnb.synths.surge.release import BUNDLE, RELEASES, install, own_folder

BINARY = f"{BUNDLE}/Contents/x86_64-linux/Surge XT.so"


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def archive(path, inside: str = BINARY) -> tuple[str, str]:
    """A release that holds one file; its name and digest."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(inside, b"the plugin")
    else:
        with tarfile.open(path, "w:gz") as file:
            member = tarfile.TarInfo(inside)
            member.size = 10
            file.addfile(member, io.BytesIO(b"the plugin"))
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["surge.tar.gz", "surge.zip"])
def test_a_good_release_is_installed_and_a_second_time_kept(served, tmp_path, capsys, name):
    folder, address = served
    release = archive(folder / name)
    home = tmp_path / "new" / "vst3"
    assert install(home, address, release) == home / BUNDLE
    assert (home / BINARY).read_bytes() == b"the plugin"
    assert [p.name for p in home.iterdir()] == [BUNDLE]
    assert "1.3.4, licence GPL-3.0-or-later" in capsys.readouterr().out
    (folder / name).unlink()
    assert install(home, address, release) == home / BUNDLE
    assert "already there" in capsys.readouterr().out


def test_what_is_wrong_is_refused_and_nothing_is_left(served, tmp_path):
    folder, address = served
    name, digest = archive(folder / "surge.tar.gz")
    other, other_digest = archive(folder / "other.tar.gz", "Other.vst3/Contents/x")
    outside, outside_digest = archive(folder / "outside.tar.gz", "../../outside")
    (folder / "text.tar.gz").write_bytes(b"no archive")
    text_digest = hashlib.sha256(b"no archive").hexdigest()
    home = tmp_path / "vst3"
    for release, message in [
        ((name, "0" * 64), f"has SHA-256 {digest}, not 0000"),
        (("absent.tar.gz", digest), "could not be fetched: HTTP Error 404"),
        ((other, other_digest), f"other.tar.gz holds no {BUNDLE}"),
        ((outside, outside_digest), "can't be unpacked"),
        (("text.tar.gz", text_digest), "can't be unpacked"),
    ]:
        with pytest.raises(SynthError, match=re.escape(message)):
            install(home, address, release)
        assert list(home.iterdir()) == []
    assert not (tmp_path / "outside").exists()
    with pytest.raises(SynthError, match="could not be fetched"):
        install(home, "http://127.0.0.1:1", (name, digest))


def test_a_system_without_a_release_is_told_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    with pytest.raises(SynthError, match="get Surge XT from https://surge-synthesizer"):
        install(tmp_path)


def test_it_goes_where_plugins_are_looked_for():
    assert own_folder() in folders()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, digest in RELEASES.values())
