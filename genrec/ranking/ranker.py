"""Ranked answers to requests: generated, retrieved, all proposals in the ranking head's order, or fused from all evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from genrec.config.schema import DecodingConfig, ModelConfig
from genrec.data.dataset import Requests
from genrec.model.collate import Collator, QueryFeatures, request_batches
from genrec.ranking.candidates import MISSING, CandidateGenerator, Candidates
from genrec.ranking.reranker import Reranker
from genrec.text.encoder import TextEncoder

SCORES = 1 << 25  # most numbers in one row set of a chunk: requests x items
MODES = ("fused", "retrieve", "generate", "rank")
Ranked = tuple[np.ndarray, np.ndarray]


class Ranker:
    """Answers many requests in batches; results come back in the order of the requests."""

    def __init__(
        self,
        generator: CandidateGenerator,
        model: ModelConfig,
        encoder: TextEncoder,
        decoding: DecodingConfig,
        rerankers: dict[str, Reranker] | None = None,
    ):
        self.generator, self.model, self.encoder, self.settings = generator, model, encoder, decoding
        self.rerankers = rerankers or {"recommendation": Reranker.default(), "search": Reranker.default()}
        self._features: tuple[Sequence[str], QueryFeatures] | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        network = self.generator.network
        missing = {"generate": network.decoder is None, "rank": network.ranking is None}
        return tuple(mode for mode in MODES if not missing.get(mode, False))

    def collator(self, texts: Sequence[str]) -> Collator:
        if self._features is None or self._features[0] is not texts:
            self._features = (texts, QueryFeatures.build(texts, self.encoder))
        return Collator(self.model, self._features[1])

    def candidates(
        self,
        requests: Requests,
        exclude_seen: bool,
        progress: Callable[[int], None] | None = None,
        exclude: torch.Tensor | None = None,
        **wanted,
    ):
        """Yield (indices, requests, candidates) chunk by chunk; ``exclude`` as in ``rank``, ``wanted`` as in ``CandidateGenerator.propose``.

        A chunk has so few requests that its rows over the whole catalogue stay within ``SCORES`` numbers each.
        """
        device, size = (
            self.generator.items.device,
            max(1, min(self.settings.batch_size, SCORES // len(self.generator.items))),
        )
        for rows, chunk, batch in request_batches(requests, self.collator(requests.query_texts), size):
            seen = seen_mask(chunk, self.generator.items.shape[0]) if exclude_seen else None
            hidden = hidden_items(exclude, rows, seen)
            yield (
                rows,
                chunk,
                self.generator.propose(
                    batch.to(device), chunk, None if hidden is None else hidden.to(device), **wanted
                ),
            )
            if progress:
                progress(len(rows))

    def rank(
        self, requests: Requests, k: int, modes: Sequence[str], exclude_seen: bool = True, progress: Callable[[int], None] | None = None,
        exclude: torch.Tensor | None = None,
    ) -> dict[str, Ranked]:  # fmt: skip
        """Per mode: item ids (N, k), -1 where empty, and scores (N, k), best first.

        ``exclude`` (n_items,) or (N, n_items) bool: items that no answer, or not this request's answer, may hold.
        A request without history and query is answered by popularity: nothing is known that could personalise it.
        """
        result = {
            mode: (np.full((len(requests), k), MISSING, np.int64), np.full((len(requests), k), -np.inf, np.float32))
            for mode in modes
        }
        wanted = {
            "fuse": "fused" in modes or "rank" in modes,
            "retrieve": k if "retrieve" in modes else 0,
            "generate": "generate" in modes,
        }
        for rows, chunk, found in self.candidates(requests, exclude_seen, progress, exclude, **wanted):
            blank = torch.from_numpy((np.diff(chunk.offsets) == 0) & (chunk.request_queries < 0))
            for mode in modes:
                ids, scores = self._order(mode, found, chunk, k)
                if blank.any():
                    ids[blank], scores[blank] = self._popular(
                        k, hidden_items(exclude, rows[blank.numpy()], None), int(blank.sum())
                    )
                result[mode][0][rows], result[mode][1][rows] = ids.cpu().numpy(), scores.cpu().numpy()
        return result

    def _popular(self, k: int, hidden: torch.Tensor | None, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The popular items that ``hidden`` (n, n_items) leaves: ids and scores (n, k)."""
        scores = self.generator.popularity.expand(n, -1)
        if hidden is not None:
            scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        scores, ids = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))
        pad = (0, k - ids.shape[1])
        ids = torch.nn.functional.pad(ids.masked_fill(scores.isneginf(), MISSING), pad, value=MISSING)
        return ids, torch.nn.functional.pad(scores, pad, value=-torch.inf)

    def _order(self, mode: str, found: Candidates, chunk: Requests, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if mode == "generate":
            ids, scores = found.generated
        elif mode == "retrieve":
            ids, scores = found.retrieved
        elif mode == "rank":
            scores, order = found.ranked.masked_fill(found.ids == MISSING, -torch.inf).sort(
                dim=1, descending=True, stable=True
            )
            ids = found.ids.gather(1, order)
        else:
            search = torch.from_numpy(chunk.request_queries >= 0)
            ids, scores = self.rerankers["recommendation"].rank(found, k)
            if search.any():
                searched = self.rerankers["search"].rank(found, k)
                ids[search], scores[search] = searched[0][search], searched[1][search]
        pad = max(0, k - ids.shape[1])
        ids = torch.nn.functional.pad(ids[:, :k], (0, pad), value=MISSING)
        return ids.clone(), torch.nn.functional.pad(scores[:, :k], (0, pad), value=-torch.inf).clone()


def hidden_items(exclude: torch.Tensor | None, rows: np.ndarray, seen: torch.Tensor | None) -> torch.Tensor | None:
    """What the requests at ``rows`` may not be answered with, (B, n_items): their part of ``exclude``, and what they have ``seen``."""
    if exclude is None:
        return seen
    mine = exclude.expand(len(rows), -1) if exclude.ndim == 1 else exclude[torch.from_numpy(np.asarray(rows))]
    return mine if seen is None else seen | mine


def seen_mask(requests: Requests, n_items: int) -> torch.Tensor:
    """Which items each request's history already holds: (B, n_items) bool."""
    mask = torch.zeros(len(requests), n_items, dtype=torch.bool)
    mask[
        torch.from_numpy(requests.histories.rows.astype(np.int64)), torch.from_numpy(requests.items.astype(np.int64))
    ] = True
    return mask
