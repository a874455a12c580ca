"""The vectors of all items of a fitted network, as searches read them."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows, with_room
from genrec.model.embeddings import BLOCK
from genrec.model.network import GenerativeRecommender


def item_tables(network: GenerativeRecommender) -> tuple[Tensor, Tensor]:
    """The vectors of all items (n_items, dim) and those of the index, with room for more; made in blocks of items."""
    n_items = network.catalogue.n_items
    if n_items <= BLOCK:
        items = with_room(network.item_encoder())
        return items, with_room(network.item_index(items))
    tables: list[Tensor] = []
    for begin in range(0, n_items, BLOCK):
        rows = torch.arange(begin, min(begin + BLOCK, n_items), device=network.catalogue.codes.device)
        block = network.item_encoder(rows)
        parts = block, network.item_index(block)
        if begin:
            tables = [append_rows(table, part) for table, part in zip(tables, parts, strict=True)]
        else:
            tables = [with_room(part, n_items - len(part)) for part in parts]
    return tables[0], tables[1]
