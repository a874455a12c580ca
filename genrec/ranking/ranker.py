"""Ranked lists for requests: generated, retrieved, ordered by the ranking head, or ordered by the re-ranker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from genrec.config.schema import DecodingConfig, ModelConfig
from genrec.data.dataset import Requests
from genrec.data.situation import SituationReader
from genrec.generation.options import MODES, SearchOptions
from genrec.model.collate import Collator, request_batches
from genrec.model.query_features import QueryFeatureCache
from genrec.ranking.candidates import MISSING, CandidateGenerator, Candidates, EncodedRequests
from genrec.ranking.reranker import Reranker
from genrec.ranking.word_mixture import WordMixture
from genrec.retrieval.allowed import id_rows
from genrec.retrieval.dense import ExactIndex
from genrec.retrieval.lexical import Match
from genrec.text.encoder import TextEncoder
from genrec.timing import stage

# Minimum rows of a network batch. With fewer rows, matrix products on the CPU sum in another order, and a request's
# list would depend on its batch (measured: equal to the last bit from 4 on).
MIN_ROWS = 4
TFIDF = "tfidf"  # the text encoder that knows the words of the catalogue alone


class Ranked(NamedTuple):
    """Lists of N requests: item ``ids`` (N, k), -1 where empty, and ``scores`` (N, k), best first.

    The first ``n_proven`` (N,) items are provably the best of the catalogue, in that order; 0 if nothing is proven.
    """

    ids: np.ndarray
    scores: np.ndarray
    n_proven: np.ndarray


class Ranker:
    """Answers many requests in batches; results come back in the order of the requests."""

    def __init__(
        self,
        generator: CandidateGenerator,
        model: ModelConfig,
        encoder: TextEncoder,
        decoding: DecodingConfig,
        rerankers: dict[str, Reranker] | None = None,
        situation: SituationReader | None = None,
    ):
        """``situation`` reads the situations of requests, for a network with ``model.situation``."""
        self.situation = situation
        self.generator, self.model, self.encoder, self.settings = generator, model, encoder, decoding
        self._query_features = QueryFeatureCache(encoder)
        self.rerankers = rerankers or {"recommendation": Reranker.default(), "search": Reranker.default()}

    def without_search(self) -> Ranker:
        """A ranker that only encodes requests: it keeps neither the trie nor node vectors in memory."""
        reader = copy.copy(self)
        reader.generator = self.generator.without_search()
        return reader

    @property
    def _mixture(self) -> WordMixture | None:
        """Mixes words into the retrieval of searches; None where that was not fitted or does not help."""
        return self.rerankers["search"].mixture

    @property
    def modes(self) -> tuple[str, ...]:
        """The search modes that the network supports."""
        network = self.generator.network
        missing = {"generate": network.decoder is None, "rank": network.ranking is None}
        return tuple(mode for mode in MODES if not missing.get(mode, False))

    def collator(self, texts: Sequence[str], searched: np.ndarray | None = None) -> Collator:
        """Makes batches of requests whose query texts are ``texts``.

        ``searched``: indices of the texts that requests search with, -1 for none; by default any. Of the others, which
        histories hold, nobody reads the items they name, and they are not looked up.
        """
        features, similar = self._query_features.build(texts), self.generator.similar_texts
        if similar is not None:
            searched = np.arange(len(texts)) if searched is None else np.unique(searched[searched >= 0])
            features = features.with_named(texts, similar, searched) if len(searched) else features
        return Collator(self.model, features, situation=self.situation)

    def understood(self, requests: Requests) -> Requests:
        """Requests with misspelt, joined, split and half-typed words of their queries as the catalogue writes them.

        A query that names nothing is no query. Queries of the training log stay as they are, and with a pretrained text
        encoder those that share no word with the catalogue do, too: it may know their words.
        """
        lexical, logged = self.generator.lexical, self.generator.features.query_items
        used = np.unique(requests.request_queries)
        used = used[used >= 0]
        if lexical is None or not len(used):
            return requests
        texts = [requests.query_texts[query] for query in used.tolist()]
        known = np.zeros(len(texts), bool) if logged is None else logged.knows(texts)
        table, queries = list(requests.query_texts), requests.request_queries.copy()
        for query, text in zip(used[~known].tolist(), [texts[row] for row in np.flatnonzero(~known)], strict=True):
            match = lexical.match(text)
            if match.no_match and self.encoder.name == TFIDF:
                queries[requests.request_queries == query] = -1
            elif match.read.corrected is not None:
                queries[requests.request_queries == query] = len(table)
                table.append(match.read.corrected)
        return replace(requests, request_queries=queries, query_texts=table)

    def matches(self, texts: Sequence[str]) -> list[Match | None]:
        """How query texts match the catalogue; None without a lexical index or for a query of the training log."""
        lexical, logged = self.generator.lexical, self.generator.features.query_items
        if lexical is None or not len(texts):
            return [None] * len(texts)
        known = np.zeros(len(texts), bool) if logged is None else logged.knows(texts)
        return [None if skip else lexical.match(text) for text, skip in zip(texts, known.tolist(), strict=True)]

    def candidates(
        self,
        requests: Requests,
        options: SearchOptions,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[np.ndarray, Requests, Candidates]]:
        """Yield (indices, requests, candidates) chunk by chunk."""
        for rows, chunk, batch in self._encoded(requests, progress):
            yield rows, chunk, self._proposed(rows, chunk, batch, options)

    def _encoded(
        self, requests: Requests, progress: Callable[[int], None] | None
    ) -> Iterator[tuple[np.ndarray, Requests, EncodedRequests]]:
        device, requests = self.generator.items.device, self.understood(requests).with_used_texts()
        collator = self.collator(requests.query_texts, requests.request_queries)
        for rows, chunk, batch in request_batches(requests, collator, self.settings.batch_size, MIN_ROWS):
            yield rows, chunk, self.generator.encode(batch.to(device), chunk)
            if progress:
                progress(len(rows))

    def _proposed(
        self, rows: np.ndarray, chunk: Requests, batch: EncodedRequests, options: SearchOptions
    ) -> Candidates:
        mine = options.take(rows)
        if options.exclude_seen:
            seen = id_rows(chunk.offsets, chunk.items)
            mine = replace(mine, allowed=mine.allowed.without(seen))
        return self.generator.propose(batch, mine)

    def rank(
        self, requests: Requests, options: SearchOptions, progress: Callable[[int], None] | None = None
    ) -> dict[str, Ranked]:
        """The lists of each mode of ``options``.

        A request without history and query gets the most popular items.
        """
        return self.rank_each(requests, [options], progress)[0]

    def rank_each(
        self, requests: Requests, variants: Sequence[SearchOptions], progress: Callable[[int], None] | None = None
    ) -> list[dict[str, Ranked]]:
        """``rank`` for several options, such as with and without seen items, in one pass of the network."""
        results = [_empty(len(requests), options) for options in variants]
        for rows, chunk, batch in self._encoded(requests, progress):
            for options, lists in zip(variants, results, strict=True):
                self._fill(lists, rows, chunk, self._proposed(rows, chunk, batch, options), options)
        return results

    def _fill(
        self, lists: dict[str, Ranked], rows: np.ndarray, chunk: Requests, found: Candidates, options: SearchOptions
    ) -> None:
        """Write the lists of a chunk of requests, those at ``rows``."""
        blank = (np.diff(chunk.offsets) == 0) & (chunk.request_queries < 0)
        for mode, ranked in lists.items():
            with stage("ranking"):
                ids, scores = (part.cpu().numpy() for part in self._order(mode, found, chunk, options.k))
            if blank.any():
                popular = self.generator.popular.first(int(blank.sum()), options.k, options.allowed.take(rows[blank]))
                ids[blank], scores[blank] = (part.cpu().numpy() for part in popular)
            ranked.ids[rows], ranked.scores[rows] = ids, scores
            ranked.n_proven[rows] = self._proven(mode, found, ids, blank)

    def _proven(self, mode: str, found: Candidates, ids: np.ndarray, blank: np.ndarray) -> np.ndarray:
        """Number of proven leading items of lists (B, k): all for an exact dense index, else those of the search."""
        length = (ids != MISSING).sum(1)
        if mode == "retrieve" and isinstance(self.generator.dense.index, ExactIndex):
            if self._mixture is None or found.matches is None:
                return length
            return np.where(found.matches.matched.numpy(), 0, length)  # the mixture's order is not proven
        certified = np.zeros_like(length)
        if mode == "generate" and found.proven is not None and self.generator.network.taste is None:
            certified = np.minimum(found.proven.cpu().numpy(), length)
        return np.where(blank, 0, certified)

    def _order(self, mode: str, found: Candidates, chunk: Requests, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if mode == "generate":
            assert found.generated is not None
            ids, scores = self.generator.network.in_taste_order(chunk, *found.generated)
        elif mode == "retrieve":
            assert found.retrieved is not None
            ids, scores = found.retrieved
            if self._mixture is not None and found.matches is not None:
                ids, scores = (part.to(ids.device) for part in self._mixture.rank(found.matches))
        elif mode == "rank":
            assert found.ids is not None and found.ranked is not None
            scores, order = found.ranked.masked_fill(found.ids == MISSING, -torch.inf).sort(
                dim=1, descending=True, stable=True
            )
            ids = found.ids.gather(1, order)
        else:
            searches = chunk.request_queries >= 0
            ids, scores = self.rerankers["search" if searches.all() else "recommendation"].rank(found, k)
            if searches.any() and not searches.all():
                rows = torch.from_numpy(searches)[:, None].to(ids.device)
                searched = self.rerankers["search"].rank(found, k)
                ids, scores = (torch.where(rows, *pair) for pair in zip(searched, (ids, scores), strict=True))
        pad = max(0, k - ids.shape[1])
        ids = torch.nn.functional.pad(ids[:, :k], (0, pad), value=MISSING)
        return ids.clone(), torch.nn.functional.pad(scores[:, :k], (0, pad), value=-torch.inf).clone()


def _empty(n: int, options: SearchOptions) -> dict[str, Ranked]:
    shape = n, options.k
    return {
        mode: Ranked(np.full(shape, MISSING, np.int64), np.full(shape, -np.inf, np.float32), np.zeros(n, np.int64))
        for mode in options.modes
    }


def seen_mask(requests: Requests, n_items: int) -> torch.Tensor:
    """Marks the items in each request's history: (B, n_items) bool."""
    mask = torch.zeros(len(requests), n_items, dtype=torch.bool)
    mask[
        torch.from_numpy(requests.histories.rows.astype(np.int64)), torch.from_numpy(requests.items.astype(np.int64))
    ] = True
    return mask
