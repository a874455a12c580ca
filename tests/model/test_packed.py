"""Packed weights are the same numbers in fewer bytes."""

from __future__ import annotations

import pytest
import torch

from genrec.model import packed as module
from genrec.model.packed import packed, unpacked


@pytest.fixture(autouse=True)
def every_tensor_is_large(monkeypatch):
    monkeypatch.setattr(module, "TABLE", 1)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.0, 3.0, 255.0], torch.uint8),
        ([-1.0, 300.0, 4.0], torch.int16),
        ([70_000, 1, 2], torch.int32),
        ([70_000.0, 1.0, 2.0], torch.float32),
        ([0.5, 1.0, 2.0], torch.float32),
        ([float("inf"), 1.0, 2.0], torch.float32),
        ([3e9, 1.0, 2.0], torch.float32),
    ],
)
def test_whole_numbers_take_the_smallest_type(values, kind):
    tensor = torch.tensor(values)
    kept = packed({"a": tensor})["a"]
    assert kept.dtype == kind and torch.equal(kept.to(tensor.dtype), tensor)


def test_zero_rows_are_left_out_and_come_back():
    table = torch.randn(40, 3) * (torch.arange(40) % 5 == 0)[:, None]
    kept = packed({"table": table, "full": torch.randn(40, 3)})
    assert kept["table@values"].shape == (8, 3) and "full" in kept
    assert torch.equal(unpacked(kept)["table"], table) and torch.equal(unpacked(kept)["full"], kept["full"])


def test_an_empty_table_comes_back():
    table = torch.zeros(7, 2)
    assert torch.equal(unpacked(packed({"table": table}))["table"].float(), table)
