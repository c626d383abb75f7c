"""Execute a notebook in place, to be committed: `python -m synthnb.tools.notebooks NOTEBOOK [PARAMS.yaml ...]`.

It runs from top to bottom in its own folder. What would bloat or date the file is left out: the outputs of cells tagged
`listen` (sound is heavy; players come back when the cell is run), progress bars, widget states and timings; pictures
are packed. The file is replaced only if every cell succeeds.

With parameter files, a later one winning, the cell tagged `parameters` keeps its defaults and its output says what this
run was given.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image


def execute(path: str | Path, params: list[str | Path] = ()) -> None:
    """Execute a notebook in place and tidy it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the file is as it was.
        ValueError: a value that is no parameter of the notebook.
    """
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    values = {}
    for file in params:
        values |= yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    if unknown := sorted(set(values) - set(papermill.inspect_notebook(path))):
        raise ValueError(f"{path.name} has no parameters {', '.join(unknown)}; mend the parameter file")
    cell = next((c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])), None)
    if values:
        defaults = cell.source
        given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        said = f"This run, with {' '.join(Path(file).name for file in params)}:\n{given}"
        cell.source = f"{defaults}\n{given}\nprint({said!r})"
    where = {"metadata": {"path": str(path.resolve().parent)}}
    NotebookClient(
        notebook, timeout=None, startup_timeout=600, record_timing=False, resources=where
    ).execute()
    if values:
        cell.source = defaults
    _tidy(notebook)
    aside = path.with_suffix(".part")
    nbformat.write(notebook, aside)
    aside.replace(path)


def _tidy(notebook: NotebookNode) -> None:
    """Take out of an executed notebook what should not be committed (see above), in place."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            listen = "listen" in cell.metadata.get("tags", [])
            cell.outputs = [o for o in cell.outputs if not listen and o.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _packed(output.data["image/png"])


def _packed(png: str) -> str:
    """A base64 PNG with 64 colours, a fifth of the size; figures do not show the difference."""
    packed = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        packed, "PNG", optimize=True
    )
    return base64.b64encode(packed.getvalue()).decode()


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
