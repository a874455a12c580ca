"""Scores keep their digits under autocast, and a step's seed costs no memory."""

from __future__ import annotations

import torch

from genrec.model.device import scores, seed


def test_scores_are_float32_under_autocast():
    torch.manual_seed(0)
    rows, table = torch.randn(5, 64), torch.randn(300, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert (rows @ table.T).dtype == torch.bfloat16
        actual = scores(rows, table)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, rows @ table.T)
    assert scores(rows.bfloat16(), table.bfloat16()).dtype == torch.float32
    assert scores(rows.to("meta"), table.to("meta")).shape == (5, 300)


def test_a_seed_repeats_the_draws_and_queues_nothing():
    queued = len(torch.cuda._queued_calls)
    seed(torch.device("cpu"), 5)
    first = torch.rand(4)
    seed(torch.device("cpu"), 5)
    assert torch.equal(first, torch.rand(4)) and len(torch.cuda._queued_calls) == queued
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(4))
