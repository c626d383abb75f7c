"""Execute notebooks in place, to be committed: `python -m synthnb.tools.notebooks NOTEBOOK [PARAMS.yaml ...]`.

Cells run from top to bottom in the notebook's folder. What would bloat or date the file is left out: the outputs of
cells tagged `listen` (sound is heavy; players come back when the cell is run), standard error (progress bars; it goes
to the terminal instead), widget states, timings, and the paths of this machine; pictures are packed. The file is
replaced only if every cell succeeds.

With parameter files, a later one winning, the cell tagged `parameters` keeps its defaults and its output says what
this run was given.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def execute(path: str | Path, params: list[str | Path] = (), timeout: int = 24 * 3600) -> Path:
    """Execute a notebook in place and tidy it. Returns its path.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the file is as it was.
        ValueError: parameters were given, but no cell is tagged `parameters`.
    """
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    values = {}
    for file in params:
        values |= yaml.safe_load(Path(file).read_text())
    cell = next((c for c in notebook.cells if "parameters" in _tags(c)), None)
    if values and cell is None:
        raise ValueError(f"{path.name} has no cell tagged 'parameters'")
    if values:
        source = cell.source
        given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        said = f"This run, with {' '.join(Path(file).name for file in params)}:\n{given}"
        cell.source = f"{source}\n{given}\nprint({said!r})"
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name=KERNEL["name"],
        record_timing=False,
        startup_timeout=600,  # seconds, on a busy machine
        resources={"metadata": {"path": str(path.resolve().parent)}},
    ).execute()
    if values:
        cell.source = source
    tidy(notebook)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    nbformat.write(notebook, aside)
    return aside.replace(path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Take out of an executed notebook what should not be committed (see above), in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.get("name") == "stderr":
                print(output.text, file=sys.stderr, end="")
        cell.outputs = (
            [] if "listen" in _tags(cell) else [o for o in cell.outputs if o.get("name") != "stderr"]
        )
        for output in cell.outputs:
            if "text" in output:
                output.text = _without_paths(output.text)
            for kind, text in output.get("data", {}).items():
                if kind == "image/png":
                    output.data[kind] = _smaller(text)
                elif isinstance(text, str) and kind.startswith("text/"):
                    output.data[kind] = _without_paths(text)


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _smaller(png: str) -> str:
    """A base64 PNG with 64 colours, a third of the size; figures do not show the difference."""
    packed = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        packed, "PNG", optimize=True
    )
    return min(base64.b64encode(packed.getvalue()).decode(), png.strip(), key=len)


def _without_paths(text: str) -> str:
    """Paths inside the repository as seen from notebooks/, other ones from the user's home."""
    for place, name in ((f"{ROOT}/", "../"), (str(ROOT), ".."), (str(Path.home()), "~")):
        text = text.replace(place, name)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m synthnb.tools.notebooks", description="Execute a notebook in place."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("params", nargs="*", type=Path, help="parameter files; a later one wins")
    arguments = parser.parse_args()
    execute(arguments.notebook, arguments.params)


if __name__ == "__main__":
    main()
