"""Every notebook runs from top to bottom, and holds the outputs of a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def printing(notebook: nbformat.NotebookNode) -> list[bool]:
    """Which code cells show something; log lines and warnings do not count."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [any(output.get("name") != "stderr" for output in cell.outputs) for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    saved = printing(notebook)
    assert notebook.cells[0].source.count("One question: ") == 1, "a notebook asks one question, in its first cell"
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    lines = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.get("text")]
    assert not [text for text in lines if "Warning" in text], "libraries warn in a notebook"
    assert printing(notebook) == saved and any(saved)  # what the page shows is what a run shows
