"""Every notebook runs from top to bottom, and holds the outputs of a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    saved = [bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.count("One question: ") == 1
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    fresh = [bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert fresh == saved and any(saved)  # what the page shows is what a run shows
