"""Candidate generation: the union of what all retrievers and the code search propose, each item with its features."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.config.schema import DecodingConfig
from genrec.data.dataset import Requests
from genrec.generation.beam import leaf_items, proven, unread_bound
from genrec.generation.engine import Searcher
from genrec.generation.options import SearchOptions
from genrec.model.batch import Batch
from genrec.model.device import to_device
from genrec.model.item_tables import item_tables
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.ranking.features import (
    FEATURES,
    RELATED_FEATURES,
    SOURCE_FEATURES,
    WORD_FEATURES,
    CandidateFeatures,
    log_rank,
    log_scores,
    search_features,
)
from genrec.ranking.word_features import WordFeatures
from genrec.ranking.word_mixture import WordMatches
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.dense import DenseRetriever, FaissIndex
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.popularity import PopularItems
from genrec.retrieval.protocol import RetrievalRequests, Retriever
from genrec.retrieval.similar_texts import SimilarTexts
from genrec.retrieval.sources import (
    CooccurrenceRetriever,
    EaseRetriever,
    FactorRetriever,
    LastItemNeighbours,
    PopularMatchRetriever,
    QueryItemRetriever,
    RecentRetriever,
    SparseRetriever,
    WindowedRetriever,
    WordRetriever,
)
from genrec.retrieval.top_k import distinct_ids
from genrec.timing import stage

COLLABORATIVE = 50  # candidates of EASE^R, and of ALS
MISSING = -1  # item id where a row has no further item
ITEM_INDEX, TEXT_INDEX = "items.faiss", "texts.faiss"


@dataclass
class Candidates:
    """Candidates of B requests.

    ``ids`` (B, K): distinct item ids per row, -1 where empty. ``features`` (B, K, len(FEATURES)) float32: their
    features. Both are None unless a mode orders the union of all sources.

    ``retrieved`` and ``generated``: items and log-probabilities from dense retrieval and from the search, best first,
    -1 and -inf where empty. The first ``proven`` (B,) generated items are provably the most probable of the catalogue,
    in that order. ``ranked`` (B, K): logits of the ranking head, if the network has one. ``matches``: of searches, what
    ``retrieved`` and words name together, where a mode reads retrieval.
    """

    ids: Tensor | None
    features: Tensor | None
    retrieved: tuple[Tensor, Tensor] | None = None
    generated: tuple[Tensor, Tensor] | None = None
    proven: Tensor | None = None
    ranked: Tensor | None = None
    matches: WordMatches | None = None

    def union(self) -> tuple[Tensor, Tensor]:
        """``ids`` and ``features``, where a mode orders the union."""
        assert self.ids is not None and self.features is not None
        return self.ids, self.features


@dataclass(frozen=True)
class EncodedRequests:
    """What the network made of requests, and the requests as retrievers read them: options do not change either."""

    encoded: Encoded
    retrieval: RetrievalRequests


class CandidateGenerator:
    """Turns requests into candidates. Dense arithmetic runs on the network's device, counting on the CPU.

    ``lexical`` matches the words of queries; without it the word features are zero. The object is immutable.
    """

    def __init__(
        self,
        network: GenerativeRecommender,
        features: CandidateFeatures,
        decoding: DecodingConfig,
        lexical: LexicalIndex | None = None,
        indexes: Path | None = None,
    ):
        """``indexes``: folder of ``save_indexes``, None to build indexes where the catalogue needs them."""
        self.network, self.features, self.settings, self.lexical = network, features, decoding, lexical
        popularity = np.log1p(features.counts).astype(np.float32)
        self.popular = PopularItems(popularity)
        with torch.inference_mode():
            self.items, self.index = item_tables(network)
            text = network.catalogue.text.to(self.items.device)
        self._set_searcher()
        saved = None if indexes is None else indexes / ITEM_INDEX, None if indexes is None else indexes / TEXT_INDEX
        self.dense = DenseRetriever.open(self.index, lambda requests: requests.vectors, decoding.index, saved[0])
        self.text = DenseRetriever.open(text, lambda requests: requests.query_text, decoding.index, saved[1])
        self.similar_texts = None  # what the network's anchors read of a query
        if network.anchor_tables is not None and network.anchor_tables.queries is not None:
            tables = network.anchor_tables
            self.similar_texts = SimilarTexts(self.text, tables.users, network.anchor_tables.queries.width, lexical)
        self._set_sources()

    def grown(
        self,
        network: GenerativeRecommender,
        features: CandidateFeatures,
        lexical: LexicalIndex | None,
        new_trie: bool = False,
    ) -> CandidateGenerator:
        """The generator over a catalogue that begins with this one's: only new items are computed.

        Without ``new_trie``, the trie is the same, as new items are pending.
        """
        grown, old = copy.copy(self), len(self.items)
        grown.network, grown.features, grown.lexical = network, features, lexical
        if network.catalogue.n_items > old:
            with torch.inference_mode():
                added = network.item_encoder(torch.arange(old, network.catalogue.n_items, device=self.items.device))
                index = network.item_index(added)
            grown.items, grown.index = append_rows(self.items, added), append_rows(self.index, index)
            grown.dense = self.dense.grown(grown.index)
            grown.text = self.text.grown(network.catalogue.text.to(self.items.device))
            grown.popular = self.popular.grown(network.catalogue.n_items)
        if self.similar_texts is not None:
            grown.similar_texts = self.similar_texts.grown(grown.text, lexical)
        if new_trie:
            grown._set_searcher()
        grown._set_sources()
        return grown

    def with_search_of(self, other: CandidateGenerator, network: GenerativeRecommender) -> CandidateGenerator:
        """The generator with ``network``, whose trie and decoder are those of ``other``, and its search of the trie."""
        changed = copy.copy(self)
        changed.network, changed.nodes, changed.searcher = network, other.nodes, other.searcher
        return changed

    def without_search(self) -> CandidateGenerator:
        """What reads requests, without what generates: it keeps neither the trie nor node vectors alive."""
        reader, network = copy.copy(self), self.network
        left_out: dict[int, Any] = {id(part): None for part in (network.decoder, network.catalogue.trie)}
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        reader.network = copy.deepcopy(network, left_out | shared)
        reader.nodes = reader.searcher = None
        return reader

    def counting(self, features: CandidateFeatures) -> CandidateGenerator:
        """The generator with other counts and without the search for codes."""
        other = copy.copy(self)
        other.features, other.searcher = features, None
        other._set_sources()
        return other

    def _set_searcher(self) -> None:
        """The vectors of the trie's nodes, and what searches with them."""
        network = self.network
        self.nodes = self.searcher = None
        if network.decoder is not None:
            with torch.inference_mode():
                self.nodes = network.decoder.node_vectors(network.catalogue.trie, self.items)
            self.searcher = Searcher(network.decoder, self.nodes, network.catalogue.trie, self.settings)

    def _set_sources(self) -> None:
        """The retrievers in the order in which their candidates are joined."""
        features, lexical, decoding, popularity = (
            self.features,
            self.lexical,
            self.settings,
            self.popular.scores.numpy(),
        )
        self.cooccurrence = CooccurrenceRetriever(features.cooccurrence)
        self.windowed = None if features.windowed is None else WindowedRetriever(features.windowed)
        self.ease = None if features.ease is None else EaseRetriever(features.ease)
        self.factors = None if features.factors is None else FactorRetriever(features.factors)
        own_time = self.network.config.request_time
        self.recent = None if features.recent is None else RecentRetriever(features.recent, own_time)
        self.words = None if lexical is None else WordRetriever(lexical)
        self.query_items = None if features.query_items is None else QueryItemRetriever(features.query_items)
        self.popular_matches = None if self.words is None else PopularMatchRetriever(self.words, popularity)
        sources: list[tuple[Retriever | None, int]] = [
            (self.text, decoding.text),
            (self.words, decoding.text),
            (self.popular_matches, decoding.text),
            (self.query_items, decoding.text),
        ]
        self.query_sources = [(source, width) for source, width in sources if source is not None and width]
        sources = [
            (self.cooccurrence, decoding.cooccurrence),
            (self.windowed, decoding.windowed),
            (self.ease, COLLABORATIVE),
            (self.factors, COLLABORATIVE),
            (self.recent, decoding.recent),
            (LastItemNeighbours(self.text), decoding.text_neighbours),
        ]
        self.history_sources = [(source, width) for source, width in sources if source is not None and width]

    def save_indexes(self, folder: Path) -> None:
        """Write the indexes of dense retrieval that took time to build, so that opening a bundle does not."""
        for name, retriever in ((ITEM_INDEX, self.dense), (TEXT_INDEX, self.text)):
            if isinstance(retriever.index, FaissIndex):
                folder.mkdir(exist_ok=True)
                retriever.index.save(folder / name)

    @torch.inference_mode()
    def encode(self, batch: Batch, requests: Requests) -> EncodedRequests:
        """One pass of the network over ``requests`` (B), those of ``batch``.

        The batch may end with repetitions of them (``request_batches``).
        """
        with stage("network"):
            encoded, n = self.network.encode(batch, self.items), len(requests)
        query_text = torch.cat([batch.query_text.new_zeros(1, batch.query_text.shape[1]), batch.query_text])
        vectors = self.network.retrieval_vectors(encoded.requests[:, 0])[:n].float()
        return EncodedRequests(encoded, RetrievalRequests(requests, vectors, query_text[batch.request_queries[:n, 0]]))

    @torch.inference_mode()
    def propose(self, batch: EncodedRequests, options: SearchOptions) -> Candidates:
        """Lists of the modes of ``options``, and the union of all sources with its features where a mode orders it.

        ``options.allowed`` has a row for each request.
        """
        encoded, retrieval, n = batch.encoded, batch.retrieval, len(batch.retrieval)
        beam, width = options.widths(self.settings)
        allowed = options.allowed.to(self.items.device)
        result = Candidates(None, None)
        scale = None
        if options.fuses or "retrieve" in options.modes:
            with stage("search"):
                ids, scores = self.dense.top(retrieval, width, allowed)
                scale = scores[:, : self.settings.dense].logsumexp(1, keepdim=True)
                scale = torch.where(scale.isfinite(), scale, 0.0)
                result.retrieved = ids, (scores - scale).masked_fill(ids == MISSING, -torch.inf)
            if "retrieve" in options.modes and self.words is not None:
                result.matches = self._word_matches(ids, retrieval, scale, options.allowed)
        if self.searcher is not None and (options.fuses or "generate" in options.modes):
            with stage("search"):
                rows = np.resize(np.arange(n), len(encoded.requests))
                search = self.searcher.search(self.network.decoder_memory(encoded), allowed.take(rows), beam, options.k)
                leaves, totals = search.leaves[:n], search.scores[:n]
                result.generated = self._items(retrieval, leaves, totals, allowed)
                unread = unread_bound(self.network.catalogue.trie, leaves, totals)
                result.proven = proven(result.generated[1], torch.maximum(search.bound[:n], unread))
        if options.fuses:
            assert scale is not None
            with stage("ranking"):
                self._fuse(result, encoded, retrieval, scale, options.allowed, allowed)
        return result

    def _word_matches(
        self, retrieved: Tensor, retrieval: RetrievalRequests, scale: Tensor, allowed: AllowedItems
    ) -> WordMatches | None:
        """The ``retrieved`` items (B, W) and those whose words match best; None where no request has a query."""
        if not (retrieval.requests.request_queries >= 0).any():
            return None
        assert self.words is not None and self.popular_matches is not None
        width = max(retrieved.shape[1], self.settings.text)
        proposed = [source.top(retrieval, width, allowed)[0] for source in (self.words, self.popular_matches)]
        ids = distinct_ids(torch.cat([retrieved.cpu(), *proposed], dim=1), len(self.items))
        known = ids.clamp(max=len(self.items) - 1)
        dense = (self.dense.score(retrieval, to_device(known, self.items.device)) - scale).float().cpu()
        said = WordFeatures.of(retrieval, known, self.words, self.popular_matches)
        ids = ids.masked_fill(ids == len(self.items), MISSING)
        related = torch.zeros(*ids.shape, 2) if self.query_items is None else self.query_items.related(retrieval, known)
        until = retrieval.requests.reference_times(self.network.config.request_time)
        popularity = self.features.popularity(known.numpy(), until)
        return WordMatches.of(ids, dense, said, related, torch.from_numpy(np.stack(popularity, axis=-1)).float())

    def _items(
        self, retrieval: RetrievalRequests, leaves: Tensor, scores: Tensor, allowed: AllowedItems
    ) -> tuple[Tensor, Tensor]:
        """The allowed items of leaves (B, W), best first, and their log-probabilities."""
        trie = self.network.catalogue.trie
        ids, scores = leaf_items(trie, leaves, scores, lambda some: self.dense.score(retrieval, some.clamp(min=0)))
        scores = scores.masked_fill(~allowed.keep(ids), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order).masked_fill(scores.isneginf(), MISSING), scores

    def _fuse(
        self,
        result: Candidates,
        encoded: Encoded,
        retrieval: RetrievalRequests,
        scale: Tensor,
        allowed: AllowedItems,
        allowed_there: AllowedItems,
    ) -> None:
        """Set the union of all sources, its features, and the logits of the ranking head, if any.

        ``scale`` (B, 1): the log-normaliser of the dense scores. ``allowed`` on the host and ``allowed_there`` on the
        device are the same. The union is made on the host, where most sources
        count; its ids go to the device once, and so do the features that were counted.
        """
        device, n_items = self.items.device, len(self.items)
        ids = distinct_ids(self._proposals(result, retrieval, allowed, allowed_there), n_items)
        live, known = ids < n_items, ids.clamp(max=n_items - 1)
        there = to_device(known, device)
        result.ids = torch.where(to_device(live, device), there, MISSING)
        columns = dict(zip(SOURCE_FEATURES, self._source_features(result, retrieval, known, there, scale), strict=True))
        columns["retrieved_rank"] = log_rank(columns["retrieved"], result.ids >= 0)
        columns["cooccurrence_rank"] = log_rank(self.cooccurrence.score(retrieval, known), live)
        columns["ranking"] = torch.zeros(ids.shape)
        counts = self.windowed, self.recent  # of which the logarithm is a feature
        named = ("windowed", self.windowed), ("ease", self.ease), ("als", self.factors), ("recent", self.recent)
        for name, source in named:
            if source is None:
                columns[name] = columns[f"{name}_rank"] = torch.zeros(ids.shape)
            else:
                scores = source.score(retrieval, known)
                columns[name] = log_scores(scores)[0] if source in counts else scores
                columns[f"{name}_rank"] = log_rank(scores, live)
        if self.network.ranking is not None:
            row = torch.arange(len(ids), device=device)
            logits = self.network.rank(encoded, row, torch.zeros_like(row), result.ids)[..., 0].float()
            result.ranked = columns["ranking"] = logits.masked_fill(result.ids == MISSING, 0.0)
        until = retrieval.requests.reference_times(self.network.config.request_time)
        counted = torch.empty(*ids.shape, len(FEATURES))
        self.features.fill(counted, len(SOURCE_FEATURES), known.numpy(), until, retrieval.requests.histories)
        indexed = [(FEATURES.index(name), column) for name, column in columns.items()]
        for index, column in indexed:
            if column.device.type == "cpu":
                counted[..., index] = column
        result.features = to_device(counted, device)
        for index, column in indexed:
            if column.device.type != "cpu":
                result.features[..., index] = column

    def _proposals(
        self, result: Candidates, retrieval: RetrievalRequests, allowed: AllowedItems, allowed_there: AllowedItems
    ) -> Tensor:
        """What all sources propose, with repetitions: (B, N) on the host, -1 where empty. One copy from the device."""
        assert result.retrieved is not None
        on_device, on_host = [result.retrieved[0]], []
        searches = (retrieval.requests.request_queries >= 0).any()
        for source, width in self.history_sources + (self.query_sources if searches else []):
            if isinstance(source, SparseRetriever | FactorRetriever):
                on_host.append(source.top(retrieval, width, allowed)[0])
            else:
                on_device.append(source.top(retrieval, width, allowed_there)[0].to(self.items.device))
        if result.generated is not None:
            on_device.append(result.generated[0])
        return torch.cat([torch.cat(on_device, dim=1).cpu(), *on_host], dim=1)

    def _source_features(
        self, result: Candidates, retrieval: RetrievalRequests, known: Tensor, there: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """``SOURCE_FEATURES`` of the candidates, (B, K) each, on the host or the device.

        ``known`` are their ids, any item where empty, and ``there`` the same on the device.
        """
        nothing = torch.zeros(known.shape)
        similar, following = (torch.from_numpy(part.at(known.numpy())) for part in self.cooccurrence.parts(retrieval))
        words, taken = [nothing] * len(WORD_FEATURES), [nothing] * (2 + len(RELATED_FEATURES))
        text = nothing
        if (retrieval.requests.request_queries >= 0).any():
            text = self.text.score(retrieval, there)
            if self.words is not None and self.popular_matches is not None:
                said = WordFeatures.of(retrieval, known, self.words, self.popular_matches)
                # The logarithm hides small differences between hundreds of matches: add the ratio to the best.
                words = [*log_scores(said.score), said.share, *said.title.unbind(-1), *said.facets.unbind(-1)]
                # Of equal matches the popular one is meant; how much so depends on how little the query says.
                words.append(self.popular_matches.score(retrieval, known))
                words += [value[:, None].expand(known.shape) for value in (said.words, said.near)]
            if self.query_items is not None:
                related = self.query_items.related(retrieval, known)
                taken = [*log_scores(self.query_items.score(retrieval, known)), *related.unbind(-1)]
        searched = search_features(there, result.generated)
        retrieved = self.dense.score(retrieval, there) - scale
        return [*searched, retrieved, *log_scores(similar), *log_scores(following), text, *words, *taken]
