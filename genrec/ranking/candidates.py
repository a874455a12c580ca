"""Proposals and evidence: the union of generated, retrieved, co-occurring and matching items, each with what every source knows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config.schema import DecodingConfig
from genrec.data.dataset import Requests
from genrec.generation.beam import leaf_items, proven
from genrec.generation.engine import Searcher
from genrec.generation.options import SearchOptions
from genrec.model.batch import Batch
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.ranking.features import CandidateFeatures, log_scores, to_tensor
from genrec.retrieval.bm25 import BM25
from genrec.retrieval.dense import ExactIndex, dense_index, top_k

MISSING = -1  # item id of an empty lane
_NEARLY = 0.8  # of the best BM25 score: nearly as good a match


@dataclass
class Candidates:
    """``ids`` (B, K) distinct item ids per row, -1 where empty; ``evidence`` (B, K, len(FEATURES)) float32. Both None where nothing is fused.

    ``retrieved`` and ``generated``: items and log-probabilities of the dense top and of the search, best first, -1 and -inf where empty;
    the first ``proven`` (B,) generated ones are provably the most probable of the catalogue, in that order. ``ranked`` (B, K) the ranking
    head's logits, where the network has one.
    """

    ids: Tensor | None
    evidence: Tensor | None
    retrieved: tuple[Tensor, Tensor] | None = None
    generated: tuple[Tensor, Tensor] | None = None
    proven: Tensor | None = None
    ranked: Tensor | None = None


class CandidateGenerator:
    """Turns requests into candidates. Network arithmetic is dense tensor work on the network's device; counting is sparse work on the CPU.

    ``lexical`` answers queries word by word; without it its evidence is zero.
    """

    def __init__(
        self,
        network: GenerativeRecommender,
        evidence: CandidateFeatures,
        decoding: DecodingConfig,
        lexical: BM25 | None = None,
    ):
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

    @property
    def splits_leaves(self) -> bool:
        """Whether the search needs dense scores: some items share a leaf, and split its probability by them."""
        return self.nodes is not None and self.network.catalogue.trie.largest_leaf > 1

    def _generate(
        self, encoded: Encoded, dense: Tensor | None, exclude: Tensor | None, beam: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        trie = self.network.catalogue.trie
        allowed = None if exclude is None else trie.restrict(~exclude)
        search = self.searcher.search(self.network.decoder_memory(encoded), allowed, beam)
        ids, scores = leaf_items(trie, search.leaves, search.scores, dense)
        if exclude is not None:
            scores = scores.masked_fill(exclude.gather(1, ids.clamp(min=0)), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order).masked_fill(scores.isneginf(), MISSING), scores, proven(scores, search.bound)

    @torch.inference_mode()
    def propose(
        self,
        batch: Batch,
        requests: Requests,
        options: SearchOptions,
    ) -> Candidates:
        """The union of the beam, the dense top, the co-occurrence top and (for a query) the text and word matches, with their evidence.

        ``requests`` are those that ``batch`` was made from, one for each row of ``options.allowed``. Only what ``options.modes`` need is computed.
        """
        fuse, retrieve, (beam, width) = options.fuses, "retrieve" in options.modes, options.widths(self.settings)
        exclude = options.allowed.hidden(len(requests), len(self.items))
        exclude = None if exclude is None else exclude.to(self.items.device)
        encoded = self.network.encode(batch, self.items)
        asked = self.network.retrieval_vectors(encoded.requests[:, 0])
        dense = retrieved = generated = certain = None
        if fuse or retrieve or self.splits_leaves:
            dense = (asked @ self.index.T).log_softmax(-1)
        if fuse or retrieve:
            retrieved = self._retrieve(asked, dense, width, exclude)
        if self.nodes is not None and (fuse or "generate" in options.modes):
            *generated, certain = self._generate(encoded, dense, exclude, beam)
        ids = evidence = judged = None
        if fuse:
            ids, evidence, judged = self._fuse(encoded, batch, requests, dense, exclude, retrieved[0], generated)
        return Candidates(ids, evidence, retrieved, None if generated is None else tuple(generated), certain, judged)

    def _retrieve(self, asked: Tensor, dense: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """The dense top ``k`` with its log-probabilities (B, k); an exact index takes it from the scores that are there."""
        if isinstance(self.nearest, ExactIndex):
            ids, scores = top_k(
                dense if exclude is None else dense.masked_fill(exclude, -torch.inf), min(k, dense.shape[1])
            )
            return ids.masked_fill(scores.isneginf(), MISSING), scores
        ids, _ = self.nearest.search(asked, k, exclude)
        return ids, dense.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)

    def _fuse(
        self,
        encoded: Encoded,
        batch: Batch,
        requests: Requests,
        dense: Tensor,
        exclude: Tensor | None,
        near: Tensor,
        generated: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The union of all sources, its evidence, and the ranking head's logits where there is a head."""
        n_items, device = dense.shape[1], dense.device
        similar, following = (
            torch.from_numpy(part).to(device) for part in self.evidence.cooccurrence.score_parts(requests.histories)
        )
        together, words, text, taken, popular = similar + following, None, None, None, None
        if (requests.request_queries >= 0).any():
            text, words, taken = (
                self._text_match(batch),
                self._word_match(requests, device),
                self._asked(requests, device),
            )
            if words is not None:
                best_match = words.max(1, keepdim=True).values
                popular = self._popular_matches(words, best_match)
        ids = [near]
        for scores, width in (
            (together, self.settings.cooccurrence),
            *((scores, self.settings.text) for scores in (text, words, popular, taken)),
            (self._beside_last(requests) if self.settings.text_neighbours else None, self.settings.text_neighbours),
        ):
            if width and scores is not None:
                best = (scores if exclude is None else scores.masked_fill(exclude, 0)).topk(min(width, n_items), dim=1)
                ids.append(best.indices.masked_fill(best.values == 0, MISSING))
        if generated is not None:
            ids.append(generated[0])
        union = _distinct(torch.cat([torch.where(part >= 0, part, n_items) for part in ids], dim=1), n_items)
        live = union < n_items
        place = union.clamp(max=n_items - 1)
        log_probability, pair = dense.gather(1, place), together.gather(1, place)
        nothing = torch.zeros_like(pair)
        matched = 3 * [nothing]
        if (
            words is not None
        ):  # how well beside the best match, too: hundreds may match nearly as well, and the logarithm hides who does
            found = words.gather(1, place)
            matched = [*log_scores(found), found / best_match.clamp(min=torch.finfo(torch.float32).tiny)]
        sources = [
            *_in_beam(union, generated), log_probability, *log_scores(similar.gather(1, place)), *log_scores(following.gather(1, place)),
            nothing if text is None else text.gather(1, place), *matched,
            *(2 * [nothing] if taken is None else log_scores(taken.gather(1, place))),
        ]  # fmt: skip
        columns, until = place.cpu().numpy(), requests.reference_times(self.network.config.request_time)
        known = [
            *self.evidence.item_features(columns, until),
            *self.evidence.history_features(columns, requests.histories),
        ]
        ranks = [_log_rank(log_probability, live), _log_rank(pair, live)]
        ids = torch.where(live, union, MISSING)
        judged = self._judge(encoded, ids)
        head = nothing if judged is None else judged
        evidence = torch.cat(
            [torch.stack(sources, -1), to_tensor(known, device), torch.stack(ranks, -1), head[..., None]], dim=-1
        )
        return ids, evidence, judged

    def _judge(self, encoded: Encoded, ids: Tensor) -> Tensor | None:
        """The ranking head's logit (its first stage) of each candidate (B, K), nothing known of the pair from counts; None without a head."""
        if self.network.ranking is None:
            return None
        row = torch.arange(len(ids), device=ids.device)
        return (
            self.network.rank(encoded, row, torch.zeros_like(row), ids)[..., 0].float().masked_fill(ids == MISSING, 0.0)
        )

    def _text_match(self, batch: Batch) -> Tensor:
        """Cosine of the query's and each item's text vectors: (B, n_items); 0 without a query."""
        table = torch.cat([batch.query_text.new_zeros(1, self.text.shape[1]), batch.query_text])
        return table[batch.request_queries[:, 0]] @ self.text.T

    def _beside_last(self, requests: Requests) -> Tensor | None:
        """Cosine of the last event's and each item's text vectors: (B, n_items); 0 with a query, without a history and for the event's own item."""
        last = np.flatnonzero((requests.request_queries < 0) & (np.diff(requests.offsets) > 0))
        if not len(last):
            return None
        items = torch.from_numpy(requests.items[requests.offsets[1:][last] - 1].astype(np.int64)).to(self.text.device)
        rows = torch.from_numpy(last).to(self.text.device)
        found = self.text.new_zeros(len(requests), len(self.text)).index_copy(0, rows, self.text[items] @ self.text.T)
        found[rows, items] = 0
        return found

    def _word_match(self, requests: Requests, device: torch.device) -> Tensor | None:
        """BM25 of the query's words for each item: (B, n_items), 0 without a query; None where nothing knows the words."""
        if self.lexical is None:
            return None
        texts = [requests.query_texts[query] if query >= 0 else "" for query in requests.request_queries]
        return torch.from_numpy(self.lexical.score(texts)).to(device)

    def _popular_matches(self, words: Tensor, best: Tensor) -> Tensor:
        """Popularity of the items whose words match a query nearly as well as the best one's, 0 of the others: hundreds may match a
        category's name equally well, and then what is bought most is sought. ``best`` (B, 1) is each query's best score. (B, n_items).
        """
        return torch.where((words >= _NEARLY * best) & (best > 0), 1 + self.popularity, 0)

    def _asked(self, requests: Requests, device: torch.device) -> Tensor | None:
        """Each item's share in what was taken after the same query: (B, n_items), 0 without a query; None where nothing was counted."""
        if self.evidence.asked is None:
            return None
        return torch.from_numpy(self.evidence.asked.score(requests.query_texts, requests.request_queries)).to(device)


def _distinct(ids: Tensor, empty: int) -> Tensor:
    """Each row's distinct ids in rising order, ``empty`` behind them."""
    ids = ids.sort(dim=1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return torch.where(repeated, empty, ids).sort(dim=1).values


def _in_beam(union: Tensor, generated: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Each candidate's log-probability in the search, one below the row's lowest where it was not found, and whether it was: (B, K) each."""
    if generated is None:
        return torch.full(union.shape, -1.0, device=union.device), torch.zeros(union.shape, device=union.device)
    found, scores = generated
    live = found >= 0
    lowest = torch.where(live, scores, torch.inf).min(1, keepdim=True).values
    floor = torch.where(lowest.isfinite(), lowest, 0.0)
    lane = torch.searchsorted(union, found.clamp(min=0)).clamp_(max=union.shape[1] - 1)
    beam = torch.full(union.shape, -torch.inf, device=union.device)
    beam.scatter_reduce_(1, lane, scores.masked_fill(~live, -torch.inf), "amax")
    return torch.where(beam.isfinite(), beam, floor - 1), beam.isfinite().float()


def _log_rank(scores: Tensor, live: Tensor) -> Tensor:
    """log(1 + how many candidates of the row score higher): (B, K)."""
    ordered = scores.masked_fill(~live, -torch.inf).sort(dim=1).values
    above = scores.shape[1] - torch.searchsorted(ordered, scores.contiguous(), right=True)
    return above.clamp(min=0).float().log1p()
