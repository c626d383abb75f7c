"""Where a match is written, so that nobody's file is lost."""

from __future__ import annotations

import errno
import re
import tempfile
from pathlib import Path

from synthnb.synths import Synth


def output_paths(
    folder: str | Path, name: str, synth: Synth, recording: str | Path | None = None
) -> dict[str, Path]:
    """Where `Match.save` writes, tried before a search begins: makes the folder, and looks at what is there.

    Args:
        name: of the preset; what a file name cannot hold becomes `_` there.
        recording: the sound file that is matched, if it comes from one; it is never overwritten.

    Returns:
        The paths by kind: `preset`, `target`, `match`, `report`, `picture` and `search`.

    Raises:
        FileExistsError: a file would be overwritten that is the recording, or that no earlier match left there.
        OSError: nothing can be written there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; choose another folder", str(folder)) from None
    stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._-") or "match"
    names = {
        "preset": f"{stem}{synth.preset_suffix}",
        "target": "target.wav",
        "match": "match.wav",
        "report": "match.json",
        "picture": "match.png",
        "search": "match.npz",
    }
    paths = {kind: folder / file for kind, file in names.items()}
    own = Path(recording) if recording is not None and Path(recording).exists() else None
    for path in (path for path in paths.values() if path.exists()):
        if not paths["report"].exists() or (own and path.samefile(own)):
            message = "a match would overwrite this file, which is not its own; choose another folder"
            raise FileExistsError(errno.EEXIST, message, str(path))
    return paths
