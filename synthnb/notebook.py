"""What notebooks say when something stops them."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator

from IPython import get_ipython


def check_parameters() -> None:
    """Stop if papermill was given a parameter that this notebook does not have; it would run on with the default.

    What papermill injects is a cell that begins with "# Parameters"; what a notebook has is annotated.
    Raises `NameError`.
    """
    names = get_ipython().user_ns
    injected = [cell for cell in names["In"] if cell.startswith("# Parameters\n")]
    given = {line.targets[0].id for cell in injected for line in ast.parse(cell).body}
    if unknown := sorted(given - set(names["__annotations__"])):
        known = ", ".join(names["__annotations__"])
        raise NameError(f"no such parameter: {', '.join(unknown)}; this notebook has {known}")


@contextlib.contextmanager
def stoppable(text: str) -> Iterator[None]:
    """An interrupt ends the cell, and *Run All* with it, in one line instead of a traceback.

    `text` says what is kept and how to go on.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop._render_traceback_ = lambda: [f"Interrupted: {text}"]  # IPython asks an exception for it
        raise
