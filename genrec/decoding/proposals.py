"""Proposals and evidence: the union of generated, retrieved, co-occurring and matching items, each with what every source knows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config import DecodingConfig
from genrec.data.dataset import Requests
from genrec.decoding.beam import leaf_items, proven
from genrec.decoding.dense import dense_index
from genrec.decoding.engine import Searcher
from genrec.decoding.evidence import Evidence, log_scores, to_tensor
from genrec.model.network import Batch, GenerativeRecommender
from genrec.retrieval.bm25 import BM25

MISSING = -1  # item id of an empty lane


@dataclass
class Candidates:
    """``ids`` (B, K) distinct item ids per row, -1 where empty; ``evidence`` (B, K, len(FEATURES)) float32.

    ``retrieved`` (B, n_items) the dense log-probabilities, -inf where excluded; ``generated`` the search's items and log-probabilities,
    of which the first ``proven`` (B,) are provably the most probable of the catalogue, in that order.
    """

    ids: Tensor
    evidence: Tensor
    retrieved: Tensor | None = None
    generated: tuple[Tensor, Tensor] | None = None
    proven: Tensor | None = None


class Proposer:
    """Turns requests into candidates. Network arithmetic is dense tensor work on the network's device; counting is sparse work on the CPU.

    ``lexical`` answers queries word by word; without it its evidence is zero.
    """

    def __init__(self, network: GenerativeRecommender, evidence: Evidence, decoding: DecodingConfig, lexical: BM25 | None = None):
        self.network, self.evidence, self.settings, self.lexical = network, evidence, decoding, lexical
        device = network.request.device
        self.popularity = torch.from_numpy(np.log1p(evidence.counts).astype(np.float32)).to(device)
        with torch.inference_mode():
            self.items = network.item_encoder()
            self.index = network.item_index(self.items)
            self.text = network.catalogue.text.to(device)
            self.nearest = dense_index(decoding.index, self.index)
            self.nodes = self.searcher = None
            if network.decoder is not None:
                self.nodes = network.decoder.node_vectors(network.catalogue.trie, self.items)
                self.searcher = Searcher(network.decoder, self.nodes, network.catalogue.trie, decoding)

    def _generate(self, encoded, dense: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        trie = self.network.catalogue.trie
        allowed = None if exclude is None else trie.restrict(~exclude)
        search = self.searcher.search(self.network.decoder_memory(encoded), allowed)
        ids, scores = leaf_items(trie, search.leaves, search.scores, dense)
        if exclude is not None:
            scores = scores.masked_fill(exclude.gather(1, ids.clamp(min=0)), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order).masked_fill(scores.isneginf(), MISSING), scores, proven(scores, search.bound)

    @torch.inference_mode()
    def propose(self, batch: Batch, requests: Requests, exclude: Tensor | None = None) -> Candidates:
        """The union of the beam, the dense top, the co-occurrence top and (for a query) the text and word matches, with their evidence.

        ``exclude`` (B, n_items) bool: items that may not be proposed. ``requests`` are those that ``batch`` was made from.
        """
        encoded = self.network.encode(batch, self.items)
        asked = self.network.retrieval_vectors(encoded.requests[:, 0])
        dense = (asked @ self.index.T).log_softmax(-1)
        n_items, device = dense.shape[1], dense.device
        similar, following = (torch.from_numpy(part).to(device) for part in self.evidence.cooccurrence.score_parts(requests.histories))
        hidden = torch.zeros_like(dense, dtype=torch.bool) if exclude is None else exclude
        retrieved = dense.masked_fill(hidden, -torch.inf)
        near, _ = self.nearest.search(asked, self.settings.dense, exclude)
        ids = [torch.where(near >= 0, near, n_items)]
        text, words, taken = self._text_match(batch), self._word_match(requests, device), self._asked(requests, device)
        searched = ((scores, self.settings.text) for scores in (text, words, taken))
        for scores, width in ((similar + following, self.settings.cooccurrence), *searched):
            if width and scores is not None:
                best = scores.masked_fill(hidden, 0).topk(min(width, n_items), dim=1)
                ids.append(torch.where(best.values != 0, best.indices, n_items))
        beam, generated, certain = torch.full_like(dense, -torch.inf), None, None
        floor = dense.new_zeros(len(dense), 1)
        if self.nodes is not None:
            found, scores, certain = self._generate(encoded, dense, exclude)
            generated = found, scores
            live = found >= 0
            beam.scatter_reduce_(1, found.clamp(min=0), scores.masked_fill(~live, -torch.inf), "amax")
            floor = torch.where(live, scores, torch.inf).min(1, keepdim=True).values
            floor = torch.where(floor.isfinite(), floor, 0.0)
            ids.append(torch.where(live, found, n_items))
        union = _distinct(torch.cat(ids, dim=1), n_items)
        live = union < n_items
        place = union.clamp(max=n_items - 1)
        in_beam = beam.gather(1, place)
        pair = (similar + following).gather(1, place)
        sources = [
            torch.where(in_beam.isfinite(), in_beam, floor - 1), in_beam.isfinite().float(), dense.gather(1, place),
            *log_scores(similar.gather(1, place)), *log_scores(following.gather(1, place)), text.gather(1, place),
            *(part for scores in (words, taken) for part in (2 * [torch.zeros_like(pair)] if scores is None else log_scores(scores.gather(1, place)))),
        ]  # fmt: skip
        columns, until = place.cpu().numpy(), requests.reference_times(self.network.config.request_time)
        known = [*self.evidence.item_features(columns, until), *self.evidence.history_features(columns, requests.histories)]
        ranks = [_log_rank(dense.gather(1, place), live), _log_rank(pair, live)]
        evidence = torch.cat([torch.stack(sources, -1), to_tensor(known, device), torch.stack(ranks, -1)], dim=-1)
        return Candidates(torch.where(live, union, MISSING), evidence, retrieved, generated, certain)

    def _text_match(self, batch: Batch) -> Tensor:
        """Cosine of the query's and each item's text vectors: (B, n_items); 0 without a query."""
        table = torch.cat([batch.query_text.new_zeros(1, self.text.shape[1]), batch.query_text])
        return table[batch.request_queries[:, 0]] @ self.text.T

    def _word_match(self, requests: Requests, device: torch.device) -> Tensor | None:
        """BM25 of the query's words for each item: (B, n_items), 0 without a query; None where no request has one."""
        if self.lexical is None or not (requests.request_queries >= 0).any():
            return None
        texts = [requests.query_texts[query] if query >= 0 else "" for query in requests.request_queries]
        return torch.from_numpy(self.lexical.score(texts)).to(device)

    def _asked(self, requests: Requests, device: torch.device) -> Tensor | None:
        """Each item's share in what was taken after the same query: (B, n_items), 0 without a query; None where no request has one."""
        if self.evidence.asked is None or not (requests.request_queries >= 0).any():
            return None
        return torch.from_numpy(self.evidence.asked.score(requests.query_texts, requests.request_queries)).to(device)


def _distinct(ids: Tensor, empty: int) -> Tensor:
    """Each row's distinct ids in rising order, ``empty`` behind them."""
    ids = ids.sort(dim=1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return torch.where(repeated, empty, ids).sort(dim=1).values


def _log_rank(scores: Tensor, live: Tensor) -> Tensor:
    """log(1 + how many candidates of the row score higher): (B, K)."""
    ordered = scores.masked_fill(~live, -torch.inf).sort(dim=1).values
    above = scores.shape[1] - torch.searchsorted(ordered, scores.contiguous(), right=True)
    return above.clamp(min=0).float().log1p()
