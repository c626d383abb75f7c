"""Get Surge XT: the official release, checked, put where hosts look, without root rights."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from synthnb.synths import SynthError

VERSION = "1.3.4"
LICENCE = "GPL-3.0-or-later"
HOME_PAGE = "https://surge-synthesizer.github.io"
ADDRESS = f"https://github.com/surge-synthesizer/releases-xt/releases/download/{VERSION}"
BUNDLE = "Surge XT.vst3"
#: File and SHA-256 of the plugins alone (no factory patches, which nothing here needs), by `sys.platform`, machine.
RELEASES = {
    ("linux", "x86_64"): (
        f"surge-xt-linux-{VERSION}-pluginsonly.tar.gz",
        "dd431b75f5fa197c4bffa6ca27ca46970f0a94c834119bb1db7decdeec4c28db",
    ),
    ("win32", "amd64"): (
        f"surge-xt-win64-{VERSION}-pluginsonly.zip",
        "564e162c560af07ad4ed47fe1bfcd827cf97a575de30d06c48249aad2e7c35e6",
    ),
}


def own_folder() -> Path:
    """Where a user's own VST3 plugins go, found by this project and by other hosts."""
    if sys.platform == "win32":
        return Path(os.environ["LOCALAPPDATA"], "Programs", "Common", "VST3")
    return Path.home() / ("Library/Audio/Plug-Ins/VST3" if sys.platform == "darwin" else ".vst3")


def install(
    folder: Path | None = None, address: str = ADDRESS, release: tuple[str, str] | None = None
) -> Path:
    """Fetch Surge XT and put its VST3 into `folder`. Nothing is left there unless all went well.

    Args:
        folder: default: where a user's own plugins go; what is there under the same name is kept.
        address: of the server's folder that holds the release.
        release: file name and SHA-256; default: this system's.

    Returns:
        The bundle.

    Raises:
        SynthError: there is no release for this system, the server doesn't answer, or what it sent is not the release.
    """
    folder = folder or own_folder()
    bundle = folder / BUNDLE
    if bundle.exists():
        print(f"Surge XT is already there: {bundle}")
        return bundle
    release = release or RELEASES.get((sys.platform, platform.machine().lower()))
    if release is None:
        raise SynthError(
            f"for {sys.platform} on {platform.machine()}, no release with a known SHA-256; get Surge XT from "
            f"{HOME_PAGE} and install it: it is then found"
        )
    name, digest = release
    print(f"Surge XT {VERSION}, licence {LICENCE}, from {address}/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".surge-") as aside:
        archive = Path(aside, name)
        _fetch(f"{address}/{name}", archive)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise SynthError(f"{address}/{name} has SHA-256 {found}, not {digest}; it was not installed")
        try:
            unpacked = _unpack(archive, Path(aside, "unpacked"))
        except (OSError, tarfile.TarError) as error:
            raise SynthError(f"{name} can't be unpacked: {error}") from None
        shutil.move(unpacked, bundle)
    print(f"It is in {bundle}, where this project and other hosts find it.")
    return bundle


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            size = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm(total=size, unit="B", unit_scale=True, mininterval=2) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
    except (OSError, urllib.error.URLError) as error:
        raise SynthError(f"{url} could not be fetched: {error}") from None


def _unpack(archive: Path, folder: Path) -> Path:
    safely = {} if archive.suffix == ".zip" else {"filter": "data"}  # a zip is always unpacked so
    shutil.unpack_archive(archive, folder, **safely)
    found = next(iter(sorted(folder.rglob(BUNDLE))), None)
    if found is None:
        raise SynthError(f"{archive.name} holds no {BUNDLE}")
    return found
