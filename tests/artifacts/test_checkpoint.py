"""Parts of a stopped stage are read, those of other inputs are not."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.artifacts.checkpoint import StageCheckpoint


def never() -> dict:
    raise AssertionError("made again")


def test_parts_are_made_once_for_their_key(tmp_path):
    rows = {"ranked": np.array([[3, -1]]), "raw": np.array([[1, 2]])}
    first = StageCheckpoint(tmp_path / "results", "a")
    assert first.part("test, BM25 (x/y)".replace("/", " "), lambda: rows) is rows
    assert first.part("nothing", dict) == {}
    again = StageCheckpoint(tmp_path / "results", "a")
    read = again.part("test, BM25 (x y)", never)
    assert read.keys() == rows.keys() and all((read[name] == rows[name]).all() for name in rows)
    assert again.part("nothing", never) == {}
    other = StageCheckpoint(tmp_path / "results", "b")
    with pytest.raises(AssertionError):
        other.part("nothing", never)
    other.part("nothing", lambda: {"ranked": np.zeros(1)})
    assert not (other.folder / "test, BM25 (x y)").exists()  # of other inputs
    other.clear()
    assert not list(tmp_path.iterdir())


def test_a_half_written_part_is_made_again(tmp_path):
    checkpoint = StageCheckpoint(tmp_path / "results", "a")
    checkpoint.part("codes", lambda: {"codes": np.arange(3)})
    (checkpoint.folder / "codes" / "codes.npy").write_bytes(b"")
    assert checkpoint.part("codes", lambda: {"codes": np.arange(4)})["codes"].tolist() == [0, 1, 2, 3]
