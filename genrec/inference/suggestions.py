"""Query suggestions: what people with this history search next.

The network reads a query alone, without a history, and so gets a vector in the space in which it retrieves items; the
same for a history alone. A known query is good where both retrieve the same items and where it is frequent: ``score =
request . query / temperature + log(1 + count)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genrec.data.dataset import Dataset, Requests
from genrec.inference.completion import NONE, Completer
from genrec.model.collate import request_batches
from genrec.ranking.ranker import Ranker


@dataclass(frozen=True)
class Suggestion:
    """One query that may come next; ``count`` is how often it was logged."""

    query: str
    score: float
    count: int


class Suggester:
    """Scores the queries of events up to split ``last``; queries of later events are unknown to it.

    ``texts`` and ``counts`` (n_queries,); ``vectors`` (n_queries, dim) the queries' retrieval vectors, unit length.
    """

    def __init__(self, ranker: Ranker, dataset: Dataset, last: int):
        logged = np.asarray(dataset.queries)[np.asarray(dataset.split) <= last].astype(np.int64)
        ids, self.counts = np.unique(logged[logged >= 0], return_counts=True)
        self.texts = [dataset.query_texts[query] for query in ids]
        self.completer = Completer(self.texts, self.counts)
        self.prior = torch.from_numpy(np.log1p(self.counts).astype(np.float32))
        n, none = len(self.texts), np.zeros(0, np.int64)
        offsets, targets = np.zeros(n + 1, np.int64), np.full(n, -1, np.int64)
        times = np.zeros(n, np.int64)
        alone = Requests(offsets, none, none, none, none, times, np.arange(n), targets, self.texts)
        self.vectors = _encode(ranker, alone)

    def best(
        self, ranker: Ranker, requests: Requests, k: int, exclude_asked: bool = False, prefix: str = ""
    ) -> list[Suggestion]:
        """The best queries of a single request; arguments as in ``suggest``."""
        order, scores = self.suggest(ranker, requests, k, exclude_asked, prefix)
        pairs = zip(order[0].tolist(), scores[0].tolist(), strict=True)
        return [
            Suggestion(self.texts[query], score, int(self.counts[query])) for query, score in pairs if score > -np.inf
        ]

    def suggest(
        self, ranker: Ranker, requests: Requests, k: int, exclude_asked: bool = False, prefix: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices into ``texts`` (N, min(k, n_queries)), best first, and scores; -inf for queries that are left out.

        ``ranker`` knows the items of the histories. A request without history gets the most frequent queries.
        ``exclude_asked`` leaves out queries of the history. ``prefix``: what is typed so far; queries that it does not
        fit are left out, and those that begin so come first (``Completer.fit``).
        """
        plain = replace(requests, request_queries=np.full(len(requests), -1, np.int64))
        fit = _encode(ranker, plain) @ self.vectors.T / ranker.generator.network.config.temperature
        known = torch.from_numpy(np.diff(requests.offsets) > 0)[:, None]
        scores = torch.where(known, fit, 0.0) + self.prior
        level = torch.zeros(len(self.texts), dtype=torch.long)
        if prefix.strip():
            level = torch.from_numpy(self.completer.fit(prefix))
            scores[:, level == NONE] = -torch.inf
        if exclude_asked:
            number = {text: index for index, text in enumerate(self.texts)}
            index_of = np.array([number.get(text, -1) for text in requests.query_texts] + [-1], np.int64)
            queries = index_of[requests.queries.astype(np.int64)]
            rows = requests.histories.rows[queries >= 0].astype(np.int64)
            scores[torch.from_numpy(rows), torch.from_numpy(queries[queries >= 0])] = -torch.inf
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        if prefix.strip():
            by_level = level[order].argsort(dim=1, stable=True)
            scores, order = scores.gather(1, by_level), order.gather(1, by_level)
        return order[:, :k].numpy(), scores[:, :k].numpy()


@torch.inference_mode()
def _encode(ranker: Ranker, requests: Requests) -> Tensor:
    """Retrieval vectors of requests: (N, dim)."""
    generator = ranker.generator
    vectors = torch.zeros(len(requests), generator.index.shape[1])
    collator = ranker.collator(requests.query_texts, requests.request_queries)
    for rows, _, batch in request_batches(requests, collator, ranker.settings.batch_size):
        encoded = generator.network.encode(batch.to(generator.items.device), generator.items)
        vectors[torch.from_numpy(rows)] = generator.network.retrieval_vectors(encoded.requests[:, 0]).float().cpu()
    return vectors
