"""Reasons of a list: which history items each result is related to. No pass of the network is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from genrec.data.dataset import Requests
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.text.encoder import TOKEN_PATTERN, item_texts


@dataclass(frozen=True)
class Neighbour:
    """A history item, its cosine to the explained item, and their co-occurrence weight in training (0: none)."""

    item_id: str
    title: str | None
    similarity: float
    cooccurrence: float


@dataclass(frozen=True)
class Reason:
    """Related items of the history, most related first, and the words of the query that the item's text has."""

    because: list[Neighbour]
    words: list[str]


def reasons(snapshot: CatalogueSnapshot, requests: Requests, item_ids: Sequence[str], limit: int = 2) -> list[Reason]:
    """A reason for each item of the list of a single request; history items that are not related are left out."""
    items = snapshot.known_indices(item_ids)
    query = requests.query_texts[requests.request_queries[0]] if requests.request_queries[0] >= 0 else ""
    return [
        Reason([one for one in near if one.cooccurrence > 0 or one.similarity > 0][:limit], words)
        for near, words in zip(
            related(snapshot, requests.items, items, limit), shared_words(snapshot, query, items), strict=True
        )
    ]


@torch.inference_mode()
def related(snapshot: CatalogueSnapshot, history: np.ndarray, items: np.ndarray, limit: int) -> list[list[Neighbour]]:
    """Of each of the items (K,), the history items related most to it.

    Cosine and co-occurrence count alike, each divided by its maximum over the history. The item itself is left out.
    """
    seen = np.unique(history).astype(np.int64)
    if not len(seen) or not len(items):
        return [[] for _ in items]
    generator = snapshot.ranker.generator
    vectors, table = generator.items, generator.features.cooccurrence
    rows, columns = (F.normalize(vectors[torch.from_numpy(one).to(vectors.device)], dim=-1) for one in (seen, items))
    similarity = (rows @ columns.T).cpu().numpy()  # (history, K)
    together = np.stack([table.between(seen, item) for item in items.tolist()], axis=1)
    relation = similarity / np.maximum(np.abs(similarity).max(0), 1e-9) + together / np.maximum(together.max(0), 1e-9)
    relation[seen[:, None] == items] = -np.inf
    order = np.argsort(-relation, axis=0, kind="stable")[:limit]
    return [
        [
            Neighbour(
                snapshot.item_ids[seen[n]], snapshot.titles[seen[n]], float(similarity[n, k]), float(together[n, k])
            )
            for n in order[:, k]
            if relation[n, k] > -np.inf
        ]
        for k in range(len(items))
    ]


def shared_words(snapshot: CatalogueSnapshot, query: str, items: np.ndarray) -> list[list[str]]:
    """For each item the words of the query that its own text has, in the query's order."""
    words = list(dict.fromkeys(re.findall(TOKEN_PATTERN, query.lower())))
    if not words:
        return [[] for _ in items]
    texts = item_texts(snapshot.table[items.tolist()])
    own = [set(re.findall(TOKEN_PATTERN, text.lower())) for text in texts]
    return [[word for word in words if word in known] for known in own]
