"""Proposals and evidence: the union of generated, retrieved and co-occurring items, each with the scores every source gives it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config import DecodingConfig
from genrec.data.histories import Histories
from genrec.decoding.beam import leaf_items
from genrec.decoding.scorers import generate
from genrec.model.network import Batch, GenerativeRecommender

FEATURES = ("generated", "in_beam", "retrieved", "cooccurrence", "cooccurs", "transition", "transits", "popularity", "text")
MISSING = -1  # item id of an empty lane
_FLOOR = 1e-3  # added before the logarithm of sparse scores


@dataclass
class Candidates:
    """``ids`` (B, K) distinct item ids per row, -1 where empty; ``evidence`` (B, K, len(FEATURES)) float32.

    ``retrieved`` (B, n_items) the dense log-probabilities, -inf where excluded; ``generated`` the beam's items and log-probabilities.
    """

    ids: Tensor
    evidence: Tensor
    retrieved: Tensor | None = None
    generated: tuple[Tensor, Tensor] | None = None


class Proposer:
    """Turns encoded requests into candidates. All arithmetic is dense tensor work on the network's device.

    ``cooccurrence`` is a fitted ``CooccurrenceTransition`` (anything with ``score_parts(histories)``); ``counts`` (n_items,) training events.
    """

    def __init__(self, network: GenerativeRecommender, cooccurrence, counts: np.ndarray, decoding: DecodingConfig):
        self.network, self.cooccurrence, self.settings = network, cooccurrence, decoding
        device = network.request.device
        self.popularity = torch.from_numpy(np.log1p(counts).astype(np.float32)).to(device)
        with torch.inference_mode():
            self.items = network.item_encoder()
            self.index = network.item_index(self.items)
            self.text = network.catalogue.text.to(device)
            self.nodes = None if network.decoder is None else network.decoder.node_vectors(network.catalogue.trie, self.items)

    def _generate(self, encoded, dense: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        trie = self.network.catalogue.trie
        allowed = None if exclude is None else trie.restrict(~exclude)
        leaves, total = generate(self.network.decoder, self.network.decoder_memory(encoded), self.nodes, trie, self.settings.beam, allowed)
        ids, scores = leaf_items(trie, leaves, total, dense)
        if exclude is not None:
            scores = scores.masked_fill(exclude.gather(1, ids.clamp(min=0)), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order).masked_fill(scores.isneginf(), MISSING), scores

    @torch.inference_mode()
    def propose(self, batch: Batch, histories: Histories, exclude: Tensor | None = None) -> Candidates:
        """The union of the beam, the dense top, the co-occurrence top and (for a query) the text top, with every source's score of each."""
        encoded = self.network.encode(batch, self.items)
        dense = (self.network.retrieval_vectors(encoded.requests[:, 0]) @ self.index.T).log_softmax(-1)
        similar, following = (torch.from_numpy(part).to(dense.device) for part in self.cooccurrence.score_parts(histories))
        hidden = torch.zeros_like(dense, dtype=torch.bool) if exclude is None else exclude
        n_items = dense.shape[1]
        retrieved = dense.masked_fill(hidden, -torch.inf)
        best = retrieved.topk(min(self.settings.dense, n_items), dim=1)
        ids, lists = [torch.where(best.values.isfinite(), best.indices, n_items)], []  # 0 is a score here: certainty
        if self.settings.cooccurrence:
            lists.append((similar + following).masked_fill(hidden, 0).topk(min(self.settings.cooccurrence, n_items), dim=1))
        text = self._text_match(batch)
        if self.settings.text:
            lists.append(text.masked_fill(hidden, 0).topk(min(self.settings.text, n_items), dim=1))
        ids += [torch.where(best.values != 0, best.indices, n_items) for best in lists]
        beam = torch.full_like(dense, -torch.inf)
        floor = dense.new_zeros(len(dense), 1)
        generated = None
        if self.nodes is not None:
            generated = found, scores = self._generate(encoded, dense, exclude)
            live = found >= 0
            beam.scatter_reduce_(1, found.clamp(min=0), scores.masked_fill(~live, -torch.inf), "amax")
            floor = torch.where(live, scores, torch.inf).min(1, keepdim=True).values
            floor = torch.where(floor.isfinite(), floor, 0.0)
            ids.append(torch.where(live, found, n_items))
        union = torch.cat(ids, dim=1).sort(dim=1).values
        repeated = torch.zeros_like(union, dtype=torch.bool)
        repeated[:, 1:] = union[:, 1:] == union[:, :-1]
        union = torch.where(repeated, n_items, union).sort(dim=1).values
        place = union.clamp(max=n_items - 1)
        in_beam = beam.gather(1, place)
        pick_similar, pick_following = similar.gather(1, place), following.gather(1, place)
        evidence = torch.stack(
            [
                torch.where(in_beam.isfinite(), in_beam, floor - 1), in_beam.isfinite().float(), dense.gather(1, place),
                (pick_similar + _FLOOR).log(), (pick_similar > 0).float(), (pick_following + _FLOOR).log(), (pick_following > 0).float(),
                self.popularity[place], text.gather(1, place),
            ], dim=-1,
        )  # fmt: skip
        return Candidates(torch.where(union < n_items, union, MISSING), evidence, retrieved, generated)

    def _text_match(self, batch: Batch) -> Tensor:
        """Cosine of the query's and each item's text vectors: (B, n_items); 0 without a query."""
        table = torch.cat([batch.query_text.new_zeros(1, self.text.shape[1]), batch.query_text])
        return table[batch.request_queries[:, 0]] @ self.text.T
