"""What simple methods answer, to set beside a model's list: the most popular items, and BM25 on the query's words."""

from __future__ import annotations

import numpy as np
import torch

from genrec.errors import UserError
from genrec.inference.filters import Filters
from genrec.inference.requests import Answer
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.retrieval.allowed import AllowedItems, id_lists
from genrec.retrieval.sources import SparseScores


def baseline_lists(
    snapshot: CatalogueSnapshot, query: str | None, k: int, filters: Filters | None
) -> dict[str, list[Answer]]:
    """The lists ``popular`` and, for a query, ``bm25``, best first; BM25 names only items that share a word.

    Raises ``UserError`` for k below 1 or a wrong filter.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, is {k}")
    generator, mask = snapshot.ranker.generator, snapshot.available
    if filters is not None and filters.restricts:
        mask = snapshot.mask_of(filters)
    blocked = np.zeros(0, np.int64) if filters is None else snapshot.known_indices(filters.blocked or ())
    allowed = AllowedItems(mask, id_lists([blocked]) if len(blocked) else None)
    k = min(k, snapshot.n_items)
    lists = {"popular": generator.popular.first(1, k, allowed)}
    if query is not None and generator.lexical is not None:
        lists["bm25"] = SparseScores(generator.lexical.sparse_scores([query], None)).top(k, allowed)
    return {
        name: [
            Answer(snapshot.item_ids[item], snapshot.titles[item], score)
            for item, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True)
            if item >= 0 and score > -torch.inf
        ]
        for name, (ids, scores) in lists.items()
    }
