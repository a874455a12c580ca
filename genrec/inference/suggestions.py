"""Query suggestions: what people with this history search next.

The network reads a query alone, without anybody's history, and so gets a vector in the space in which it retrieves items; the same for
a history alone. A known query is good where both want the same items and where it is often asked:
``score = request . query / temperature + log(1 + times asked)``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from genrec.data.dataset import Dataset, Requests
from genrec.model.collate import request_batches
from genrec.ranking.ranker import Ranker


class Suggester:
    """Scores the queries that were asked in events up to split ``last``; queries of later events are unknown to it."""

    def __init__(self, ranker: Ranker, dataset: Dataset, last: int):
        asked = np.asarray(dataset.queries)[np.asarray(dataset.split) <= last].astype(np.int64)
        ids, counts = np.unique(asked[asked >= 0], return_counts=True)
        self.texts = [dataset.query_texts[query] for query in ids]
        self.ranker, self.counts = ranker, counts
        self.prior = torch.from_numpy(np.log1p(counts).astype(np.float32))
        self._vectors: Tensor | None = None

    @property
    def vectors(self) -> Tensor:
        """Retrieval vectors of the known queries, asked by nobody in particular: (n_queries, dim), unit length."""
        if self._vectors is None:
            n, none = len(self.texts), np.zeros(0, np.int64)
            alone = Requests(
                np.zeros(n + 1, np.int64),
                none,
                none,
                none,
                none,
                np.zeros(n, np.int64),
                np.arange(n),
                np.full(n, -1, np.int64),
                self.texts,
            )
            self._vectors = self._encode(alone)
        return self._vectors

    @torch.inference_mode()
    def _encode(self, requests: Requests) -> Tensor:
        generator = self.ranker.generator
        found = torch.zeros(len(requests), generator.index.shape[1])
        for rows, _, batch in request_batches(
            requests, self.ranker.collator(requests.query_texts), self.ranker.settings.batch_size
        ):
            encoded = generator.network.encode(batch.to(generator.items.device), generator.items)
            found[torch.from_numpy(rows)] = generator.network.retrieval_vectors(encoded.requests[:, 0]).float().cpu()
        return found

    def suggest(self, requests: Requests, k: int, exclude_asked: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``texts`` (N, min(k, n_queries)), best first, and scores.

        Whoever has no history gets what is asked most. ``exclude_asked`` hides queries that the history holds (score -inf).
        """
        plain = replace(requests, request_queries=np.full(len(requests), -1, np.int64))
        fit = self._encode(plain) @ self.vectors.T / self.ranker.generator.network.config.temperature
        known = torch.from_numpy(np.diff(requests.offsets) > 0)[:, None]
        scores = torch.where(known, fit, 0.0) + self.prior
        if exclude_asked:
            place = {text: index for index, text in enumerate(self.texts)}
            mine = np.array([place.get(text, -1) for text in requests.query_texts] + [-1], np.int64)[
                requests.queries.astype(np.int64)
            ]
            rows = requests.histories.rows[mine >= 0]
            scores[torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(mine[mine >= 0])] = -torch.inf
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return order[:, :k].numpy(), scores[:, :k].numpy()
