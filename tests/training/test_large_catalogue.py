"""Steps of large catalogues: sparse gradients, listed nodes, a teacher over candidates. Each equals the whole."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from genrec.catalogue.trie import build_trie
from genrec.model import code_decoder
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.objectives import walked_nodes as walked_nodes_module
from genrec.objectives.walked_nodes import walked_nodes
from genrec.training import generation_losses
from genrec.training.fit import fill_anchors, new_network
from genrec.training.generation_losses import candidate_teacher, dense_teacher
from genrec.training.optimizer import TouchedRowsAdamW, clip_gradients
from genrec.training.warm_start import copy_weights

ROWS, DIM = 50, 4


def trained(sparse: bool, batches: list[torch.Tensor], limit: float = 0.5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    table, head = nn.Embedding(ROWS, DIM, sparse=sparse), nn.Linear(DIM, 1)
    groups = [{"params": [table.weight, head.weight], "weight_decay": 0.1}, {"params": [head.bias], "weight_decay": 0}]
    optimizer = TouchedRowsAdamW(groups, lr=0.05, fused=True)
    parameters = [table.weight, *head.parameters()]
    for rows in batches:
        optimizer.zero_grad()
        for part in rows.split(max(len(rows) // 2, 1)):  # accumulated over two chunks
            head(table(part)).square().sum().backward()
        assert table.weight.grad.is_sparse is sparse
        clip_gradients(parameters, limit)
        optimizer.step()
    return {"table": table.weight.detach(), "head": head.weight.detach()}


def test_touched_rows_equal_adamw_where_all_rows_are_touched():
    every = [torch.randperm(ROWS, generator=torch.Generator().manual_seed(n)).repeat(2) for n in range(5)]
    dense, sparse = trained(False, every), trained(True, every)
    for name in dense:
        torch.testing.assert_close(sparse[name], dense[name], rtol=1e-5, atol=1e-6)


def test_untouched_rows_stay_and_idle_rows_decay():
    torch.manual_seed(0)
    start = nn.Embedding(ROWS, DIM).weight.detach()
    actual = trained(True, [torch.tensor([3, 4]), torch.tensor([4, 4]), torch.tensor([3, 5])], limit=1e9)["table"]
    untouched = [row for row in range(ROWS) if row not in (3, 4, 5)]
    assert torch.equal(actual[untouched], start[untouched])
    assert (actual[[3, 4, 5]] != start[[3, 4, 5]]).all()


def test_a_resumed_optimizer_equals_an_uninterrupted_one():
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, DIM, sparse=True)
    optimizer = TouchedRowsAdamW(table.parameters(), lr=0.05, fused=True)

    def step(table: nn.Embedding, optimizer: TouchedRowsAdamW, row: int) -> None:
        optimizer.zero_grad()
        table(torch.tensor([row, 7])).square().sum().backward()
        optimizer.step()

    step(table, optimizer, 1)
    other = copy.deepcopy(table)
    resumed = TouchedRowsAdamW(other.parameters(), lr=0.05, fused=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for row in (2, 1):
        step(table, optimizer, row)
        step(other, resumed, row)
    assert torch.equal(table.weight, other.weight)


def test_listed_nodes_are_the_marked_ones(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 6, (400, 4), generator=draw)
    trie = build_trie(codes, (6, 6, 6, 6))
    paths = trie.item_path[torch.randint(0, 400, (30,), generator=draw)]
    marked, rows = walked_nodes(trie, paths)
    monkeypatch.setattr(walked_nodes_module, "LARGE_TRIE", 0)
    listed, actual = walked_nodes(trie, paths)
    assert torch.equal(marked, listed)
    assert torch.equal(actual[listed], rows[marked])
    assert torch.equal(actual[paths[:, :-1]], rows[paths[:, :-1]])


@pytest.mark.parametrize("pointer", [False, True])
def test_a_teacher_over_all_items_as_candidates_is_the_dense_one(prepared_run, monkeypatch, pointer):
    network, batch = prepared(prepared_run, pointer)
    encoded = network.encode(batch)
    row, column = (batch.targets >= 0).nonzero(as_tuple=True)
    targets, trie = batch.targets[row, column], network.catalogue.trie
    dense, dense_loss = dense_teacher(network, encoded, row, column, targets)
    every = torch.arange(trie.n_items)
    monkeypatch.setattr(generation_losses, "TEACHER_DRAWS", trie.n_items)
    monkeypatch.setattr(generation_losses.torch, "randint", lambda high, shape, device=None: every)
    candidates, loss = candidate_teacher(network, encoded, row, column, targets)
    requests = torch.arange(len(row)).repeat_interleave(trie.n_nodes)
    nodes = torch.arange(trie.n_nodes).repeat(len(row))
    torch.testing.assert_close(candidates.below(requests, nodes), dense.below(requests, nodes), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, dense_loss, rtol=1e-4, atol=1e-5)


def test_own_candidates_are_merged_into_sorted_draws():
    draws, place = torch.tensor([1, 4, 4, 7, 9]), torch.tensor([[4, 0, 20], [8, 4, 8], [9, 20, 3]])
    drawn, known = torch.arange(15.0).view(3, 5), 100 + torch.arange(9.0).view(3, 3)
    positions, scores = generation_losses.merged(draws, drawn, place, known, padding=20)
    assert torch.equal(positions, torch.cat([draws.expand(3, -1), place], dim=1).sort(dim=1).values)
    rows = [dict(zip(row[kept].tolist(), score[kept].tolist(), strict=True))
            for row, score in zip(positions, scores, strict=True) for kept in [score.isfinite()]]  # fmt: skip
    assert rows == [
        {0: 101, 1: 0, 4: 100, 7: 3, 9: 4},
        {1: 5, 4: 104, 7: 8, 8: 103, 9: 9},
        {1: 10, 3: 108, 4: 11, 7: 13, 9: 106},
    ]
    assert scores.isfinite().sum(1).tolist() == [5, 5, 5]


def test_drawn_candidates_estimate_the_dense_teacher(prepared_run, monkeypatch):
    """Over many draws, the mass below each first code is that of all items, up to noise."""
    network, batch = prepared(prepared_run, False)
    encoded = network.encode(batch)
    row, column = (batch.targets >= 0).nonzero(as_tuple=True)
    targets, trie = batch.targets[row, column], network.catalogue.trie
    monkeypatch.setattr(generation_losses, "TEACHER_DRAWS", 40)
    nodes = torch.arange(*trie.level_bounds[1:3])
    requests = torch.arange(len(row)).repeat_interleave(len(nodes))
    dense = dense_teacher(network, encoded, row, column, targets)[0].below(requests, nodes.repeat(len(row)))
    torch.manual_seed(0)
    masses = [
        candidate_teacher(network, encoded, row, column, targets)[0].below(requests, nodes.repeat(len(row)))
        for _ in range(60)
    ]
    assert (torch.stack(masses).mean(0) - dense).abs().max() < 0.1


@pytest.mark.parametrize("decoder_alone", [False, True])
def test_nodes_that_no_search_reads_need_no_vectors_to_learn(prepared_run, monkeypatch, decoder_alone):
    """The same loss and gradients with a table of the read nodes alone, and the same answers."""
    whole, batch = prepared(prepared_run, True)
    monkeypatch.setattr(code_decoder, "LARGE_TRIE", 0)
    read, _ = prepared(prepared_run, True)
    assert copy_weights(read, whole) == [] and len(read.decoder.nodes.weight) < len(whole.decoder.nodes.weight)
    settings, live = prepared_run.config.training, (batch.targets >= 0).nonzero(as_tuple=True)
    gradients = []
    for network in (whole, read):
        torch.manual_seed(1)
        encoded = network.encode(batch)
        means = network.decoder.means(network.catalogue.trie, encoded.items) if decoder_alone else None
        loss = generation_losses.generation_loss(network, encoded, live, batch.targets, settings, means)
        loss.backward()
        table, own = network.decoder.nodes.weight.grad, network.decoder.own_nodes
        gradients.append((loss.detach(), network.item_encoder.ids.weight.grad, table if own is None else table[:-1]))
        assert own is None or not table[-1].any()
    own = read.decoder.own_nodes
    unread = torch.ones(len(gradients[0][2]), dtype=torch.bool).index_fill(0, own, False)
    assert unread.any() and not gradients[0][2][unread].any()
    torch.testing.assert_close(gradients[1][0], gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradients[1][2], gradients[0][2][own], rtol=1e-4, atol=1e-7)


def prepared(run, pointer: bool):
    """A network without dropout and a batch of validation requests.

    A fresh network's scores point at the last event; at this temperature few draws find their mass.
    """
    model = replace(run.config.model, pointer=pointer, dropout=0.0, item_dropout=0.0, temperature=0.5)
    config = replace(run.config, model=model)
    network = new_network(config, run.dataset, run.ids, generate=True)
    fill_anchors(network.anchor_tables, run.dataset, 0)
    collator = Collator(config.model, QueryFeatures.build(run.dataset.query_texts, run.ids.encoder))
    return network.eval(), collator.requests(run.dataset.requests("valid").take(np.arange(8)))
