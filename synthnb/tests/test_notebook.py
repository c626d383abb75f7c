"""What stops a notebook, in a kernel: a parameter that does not exist, an interrupt."""

from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHECK = "from synthnb.notebook import check_parameters\n\ncheck_parameters()"


def notebook(path, *cells: str):
    """Write a notebook of code cells, the first with the parameters; returns its path."""
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)
    return path


def test_a_misspelt_parameter_stops_a_run_of_papermill(tmp_path):
    path = notebook(
        tmp_path / "a.ipynb", "clips: int = 3  # how many\nname: str = ''  # whose", CHECK, "print(clips)"
    )

    def run(**given):
        done = papermill.execute_notebook(
            path, tmp_path / "b.ipynb", given, progress_bar=False, log_output=False
        )
        return done.cells[-1].outputs[0].text

    assert run() == "3\n"
    assert run(clips=4, name='a "b"\n= c') == "4\n"
    with pytest.raises(
        papermill.PapermillExecutionError, match="no such parameter: clip; this notebook has clips, name"
    ):
        run(clip=4, name="c")


def test_without_papermill_there_is_nothing_to_stop_at(tmp_path):
    """As nbval and JupyterLab run it; there the second cell may also run again, after others."""
    path = notebook(tmp_path / "a.ipynb", "clips: int = 3", CHECK, "other = 1", CHECK)
    NotebookClient(nbformat.read(path, 4)).execute()


def test_an_interrupt_ends_the_cell_in_one_line(tmp_path):
    stop = "from synthnb.notebook import stoppable\n\nwith stoppable('go on later'):\n    raise KeyboardInterrupt"
    client = NotebookClient(nbformat.read(notebook(tmp_path / "a.ipynb", "x: int = 1", stop, "x = 2"), 4))
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        client.execute()
    (output,) = client.nb.cells[1].outputs
    assert output.traceback == ["Interrupted: go on later"]
    assert client.nb.cells[2].execution_count is None


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_before_it_works(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata["tags"]
    assert "\ncheck_parameters()\n" in cells[1].source
