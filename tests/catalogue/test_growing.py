"""Tables that grow: earlier states keep their rows, continuations do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.catalogue import growing
from genrec.catalogue.growing import append_rows, with_room


@pytest.mark.parametrize("made", [torch.tensor, np.array])
def test_earlier_states_stay_and_nothing_is_copied(made):
    first = with_room(made([[1, 2], [3, 4]]))
    second = append_rows(first, made([[5, 6]]))
    third = append_rows(second, made([[7, 8], [9, 0]]))
    assert first.tolist() == [[1, 2], [3, 4]] and second.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert third.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 0]]
    address = [table.data_ptr() if isinstance(table, torch.Tensor) else table.ctypes.data for table in (first, third)]
    assert address[0] == address[1]


@pytest.mark.parametrize("made", [torch.tensor, np.array])
def test_the_second_continuation_of_a_table_gets_a_copy(made):
    first = with_room(made([1, 2]))
    left = append_rows(first, made([3]))
    right = append_rows(first, made([4]))
    assert left.tolist() == [1, 2, 3] and right.tolist() == [1, 2, 4]
    assert append_rows(left, made([5])).tolist() == [1, 2, 3, 5]


def test_a_full_table_moves(monkeypatch):
    monkeypatch.setattr(growing, "MIN_SPARE", 2)
    table, copies, expected = torch.arange(1), 0, [0]
    for number in range(1, 200):
        before = table.data_ptr()
        table = append_rows(table, torch.tensor([number]))
        copies += table.data_ptr() != before
        expected.append(number)
    assert table.tolist() == expected and copies < 80
    assert append_rows(table, torch.arange(1000)).tolist() == [*expected, *range(1000)]
