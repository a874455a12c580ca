"""Packed weights are the same numbers in fewer bytes."""

from __future__ import annotations

import pytest
import torch

from genrec.model import packed as module
from genrec.model.packed import packed, table_rows, unpacked
from genrec.model.saved import WithoutDraws


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
    chosen = torch.tensor([0, 1, 7, 10, 38, 39])
    for weights in (kept, {"table": table}):
        assert torch.equal(table_rows(weights, "table", chosen), table[chosen])


def test_rows_of_no_neighbours_are_left_out_and_come_back():
    table = torch.where((torch.arange(40) % 5 == 0)[:, None], torch.arange(120).view(40, 3), -1).int()
    kept = packed({"table": table})
    assert kept["table@values"].shape == (8, 3) and torch.equal(unpacked(kept)["table"].int(), table)


def test_an_empty_table_comes_back():
    table = torch.zeros(7, 2)
    assert torch.equal(unpacked(packed({"table": table}))["table"].float(), table)


def test_modules_that_are_loaded_draw_no_weights():
    state = torch.get_rng_state()
    with WithoutDraws():
        modules = torch.nn.Embedding(7, 3), torch.nn.EmbeddingBag(7, 3), torch.nn.Linear(3, 3)
        torch.nn.init.normal_(modules[0].weight, std=0.02)
        norm = torch.nn.LayerNorm(3)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(norm.weight, torch.ones(3))
