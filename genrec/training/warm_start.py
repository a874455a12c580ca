"""Start a fit from an existing network: weights by item, code and trie node, and windows of new and replayed events."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows
from genrec.model.code_decoder import CodeDecoder
from genrec.model.network import GenerativeRecommender
from genrec.training.plan import WarmStart


@torch.no_grad()
def copy_weights(new: GenerativeRecommender, old: GenerativeRecommender, prefix: str = "") -> list[str]:
    """Give ``new`` the weights of ``old``, whose catalogue it begins with; parameters named with ``prefix`` only.

    Rows of tables belong to items, codes or trie nodes: a row that only new items have keeps its fresh weights. Returns
    the names of parameters that ``old`` does not have in this shape.
    """
    tables = _row_maps(new, old)
    weights, fresh = old.state_dict(), []
    for name, parameter in new.named_parameters():
        if not name.startswith(prefix):
            continue
        source = weights.get(name)
        if source is not None and name in tables:
            rows, old_rows = tables[name]
            parameter[rows.to(parameter.device)] = source[old_rows].to(parameter)
        elif source is not None and source.shape == parameter.shape:
            parameter.copy_(source)
        else:
            fresh.append(name)
    return fresh


def _row_maps(new: GenerativeRecommender, old: GenerativeRecommender) -> dict[str, tuple[Tensor, Tensor]]:
    """Per table: rows of the new one and the rows of the old one that they continue."""
    n_old = old.catalogue.n_items
    assert torch.equal(new.catalogue.codes[:n_old].cpu(), old.catalogue.codes.cpu()), (
        "the old items changed their codes"
    )
    items = torch.arange(n_old)
    maps = {"item_encoder.ids.weight": (items, items)}
    codes = _same(new.item_encoder.code_rows[:n_old], old.item_encoder.code_rows)
    maps["item_encoder.codes.weight"] = codes
    if new.decoder is not None and old.decoder is not None:
        nodes = _same(new.catalogue.trie.item_path[:n_old], old.catalogue.trie.item_path)
        root = torch.zeros(1, dtype=torch.long)
        nodes = torch.cat([root, nodes[0]]), torch.cat([root, nodes[1]])
        maps["decoder.nodes.weight"] = _own_rows(new.decoder, old.decoder, *nodes)
        new_rows, old_rows = new.decoder.code_row.cpu()[nodes[0]], old.decoder.code_row.cpu()[nodes[1]]
        maps["decoder.codes.weight"] = new_rows, old_rows
    return maps


def _own_rows(new: CodeDecoder, old: CodeDecoder, nodes: Tensor, old_nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of nodes (n,) and old nodes (n,) in the tables of own vectors, of those that have one in both."""
    rows = [
        node if decoder.node_row is None else decoder.node_row.cpu().long()[node]
        for decoder, node in ((new, nodes), (old, old_nodes))
    ]
    kept = torch.ones_like(nodes, dtype=torch.bool)
    for decoder, row in zip((new, old), rows, strict=True):
        if decoder.own_nodes is not None:
            kept &= row < len(decoder.own_nodes)
    return rows[0][kept], rows[1][kept]


def _same(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct pairs of (n, L) entries that stand in the same cell."""
    pairs = torch.stack([new.flatten().cpu(), old.flatten().cpu()], dim=1).unique(dim=0)
    return pairs[:, 0], pairs[:, 1]


def choose_windows(
    dataset: Dataset, windows: Windows, counts: np.ndarray, start: WarmStart, batch_size: int, seed: int
) -> np.ndarray:
    """``counts`` (W,) with 0 for the windows that the steps have no room for: (W,).

    Windows with an event that ``start.network`` has not learnt come first, as many as the steps hold beside the replay;
    then older ones.
    """
    rng = np.random.default_rng([seed, 11])
    learnt = np.zeros(dataset.n_users, np.int64)
    learnt[: len(start.learnt)] = start.learnt
    # Events of a user are in order of time: a window is new when its last event is.
    user, learnable = dataset.user_of(windows.start), counts > 0
    is_new = windows.stop - np.asarray(dataset.offsets)[user] > learnt[user]
    new, older = (rng.permutation(np.flatnonzero(learnable & rows)) for rows in (is_new, ~is_new))
    room = start.steps * batch_size
    replayed = min(len(older), int(round(start.replay * room)))
    kept = np.concatenate([new[: room - replayed], older[:replayed]])
    chosen = np.zeros_like(counts)
    chosen[kept] = counts[kept]
    return chosen
