"""The bar of a fit in a notebook's cell: one line with the stage's name, written anew, and the time it took at last."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from genrec import progress
from genrec.training.trainer import FitProgress


@pytest.fixture
def cell(monkeypatch):
    """What a cell shows: a list whose last entry is written anew."""
    lines: list[str] = []

    def display(data, raw, display_id):
        lines.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: lines.__setitem__(-1, data["text/plain"]))

    pytest.importorskip("IPython.display")
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    return lines


def test_a_fit_shows_its_stage_and_how_far_it_is(cell):
    bar = FitProgress("backbone, search")
    trainer = SimpleNamespace(num_training_batches=4, max_epochs=2, current_epoch=1)  # resumed after an epoch
    bar.on_train_start(trainer, None)
    assert "50%" in cell[0]
    bar.on_train_batch_end(trainer, None, None, None, 0)
    assert len(cell) == 1 and cell[0].startswith("backbone, search ") and "62%" in cell[0] and "left" in cell[0]
    bar.on_exception(trainer, None, KeyboardInterrupt())
    assert cell == ["backbone, search: 0 s"]
    bar.on_train_end(trainer, None)
    assert len(cell) == 1


def test_short_work_leaves_no_line(cell):
    with progress.Progress("candidates", 2) as short:
        short.advance(2)
    assert cell == []
