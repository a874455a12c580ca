"""The policy: a code decoder that learns on top of a frozen network, with a frozen copy of itself as reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.data.dataset import Requests
from genrec.generation.beam import leaf_items
from genrec.generation.sampling import Samples, sample_items
from genrec.generation.scorers import CachedScorer, generate
from genrec.model.batch import Batch
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.model.collate import Collator
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.model.node_vectors import NodeVectors
from genrec.objectives.generation import path_log_probabilities
from genrec.objectives.walked_nodes import NodeRows, walked_nodes
from genrec.ranking.ranker import seen_mask


@dataclass
class PolicyRequests:
    """A batch of B requests of ``users`` (B,) after the frozen network.

    ``dense`` (B, n_items) log-probabilities of the retrieval head.
    """

    requests: Requests
    users: np.ndarray
    batch: Batch
    encoded: Encoded
    dense: Tensor

    @property
    def state(self) -> Tensor:
        """Request states (B, dim)."""
        return self.encoded.requests[:, 0]

    @property
    def device(self) -> torch.device:
        """Where the batch lies."""
        return self.dense.device


class Policy:
    """A network of which only ``decoder`` learns; ``reference`` is the decoder that it is compared with.

    Item vectors and their means per trie node are computed once, because the backbone is frozen.
    """

    def __init__(self, network: GenerativeRecommender):
        self.network = network.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self.trie, self.text = network.catalogue.trie, network.catalogue.text
        with torch.no_grad():
            self.items = network.item_encoder()
            self.index = network.item_index(self.items)
            self.means = self.decoder.means(self.trie, self.items)
        self._vectors: tuple[int, Tensor | NodeVectors] | None = None
        self.version = 0  # rises with every change of the decoder
        self.set_reference()
        self.decoder.requires_grad_(True)

    def set_reference(self) -> None:
        """Take the decoder as it is now as the reference."""
        self.reference = copy.deepcopy(self.decoder).requires_grad_(False)
        with torch.no_grad():
            self.reference_vectors = self.reference.node_vectors(self.trie, self.items, self.means)

    @property
    def decoder(self) -> CodeDecoder:
        """The decoder that learns."""
        assert self.network.decoder is not None
        return self.network.decoder

    @torch.no_grad()
    def encode(
        self, collator: Collator, requests: Requests, users: np.ndarray | None = None, counted: bool = False
    ) -> PolicyRequests:
        """Requests of ``users`` (B,), -1 unknown, through the frozen network.

        ``counted``: the requests are training requests, whose own events are in the network's counts and are taken out.
        """
        batch = collator.requests(requests).to(self.items.device)
        encoded = self.network.encode(batch, self.items, self.network.choose_anchors(batch, leave_out=counted))
        vectors = self.network.retrieval_vectors(encoded.requests[:, 0])
        users = np.full(len(requests), -1) if users is None else users
        return PolicyRequests(requests, users, batch, encoded, (vectors @ self.index.T).log_softmax(-1))

    def memory(self, inputs: PolicyRequests, decoder: CodeDecoder | None = None) -> Memory:
        """What a decoder reads of the requests."""
        return self.network.decoder_memory(inputs.encoded, decoder=decoder)

    def vectors(self) -> Tensor | NodeVectors:
        """The node vectors of the policy as it is now, without a gradient."""
        if self._vectors is None or self._vectors[0] != self.version:
            with torch.no_grad():
                self._vectors = self.version, self.decoder.node_vectors(self.trie, self.items, self.means)
        return self._vectors[1]

    def steps(self, inputs: PolicyRequests, paths: Tensor) -> Tensor:
        """Log-probability of each step of walks (B, K, L) under the policy, with gradients: (B, K, L)."""
        nodes, columns = walked_nodes(self.trie, paths.flatten(0, 1))
        vectors = self.decoder.some_node_vectors(self.trie, self.items, nodes, self.means)
        return _steps(self.decoder, self.memory(inputs), vectors, self.trie, paths, columns)

    @torch.no_grad()
    def reference_steps(self, inputs: PolicyRequests, paths: Tensor) -> Tensor:
        """The same of the reference, without a gradient."""
        return _steps(
            self.reference, self.memory(inputs, self.reference), self.reference_vectors, self.trie, paths, None
        )

    @torch.no_grad()
    def item_log_probabilities(self, inputs: PolicyRequests, ids: Tensor) -> Tensor:
        """Log-probabilities of items (B, K), -inf for -1; items of one leaf share its probability evenly.

        With the factor of the network's taste, if it has one, as ``beam``.
        """
        live, paths = ids >= 0, self.trie.item_path[ids.clamp(min=0)]
        steps = _steps(self.decoder, self.memory(inputs), self.vectors(), self.trie, paths, None)
        same_leaf = self.trie.node_item_count[paths[..., -1]].float().log()
        scores, taste = steps.sum(-1) - same_leaf, self.network.taste
        if taste is not None:
            scores = scores + taste.factor(self.text, inputs.requests, ids)
        return scores.masked_fill(~live, -torch.inf)

    @torch.no_grad()
    def sample(self, inputs: PolicyRequests, samples: int, generator: torch.Generator) -> Samples:
        """Draw ``samples`` items per request from the policy."""
        scorer = CachedScorer(self.decoder, self.memory(inputs), self.vectors(), 1 + samples * (self.trie.depth - 1))
        return sample_items(self.trie, scorer, len(inputs.requests), samples, generator)

    @torch.no_grad()
    def beam(self, inputs: PolicyRequests, width: int, hide_seen: bool = True) -> tuple[Tensor, Tensor]:
        """Items (B, W) of a beam search, best first, and their log-probabilities, with the factor of the taste if any.

        ``hide_seen``: items of the history become -1 and -inf.
        """
        leaves, scores = generate(self.decoder, self.memory(inputs), self.vectors(), self.trie, width)
        ids, scores = leaf_items(self.trie, leaves, scores, lambda some: inputs.dense.gather(1, some.clamp(min=0)))
        if hide_seen:
            seen = seen_mask(inputs.requests, self.trie.n_items).to(ids.device)
            scores = scores.masked_fill((ids < 0) | seen.gather(1, ids.clamp(min=0)), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order).masked_fill(scores.isneginf(), -1)
        return self.network.in_taste_order(inputs.requests, ids, scores)


def _entered(paths: Tensor) -> Tensor:
    """The node before each step of walks (..., L)."""
    return torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)


def _steps(
    decoder: CodeDecoder,
    memory: Memory,
    vectors: Tensor | NodeVectors,
    trie: CatalogueTrie,
    paths: Tensor,
    columns: Tensor | NodeRows | None,
) -> Tensor:
    entered = _entered(paths)
    if isinstance(vectors, NodeVectors):
        columns, vectors = vectors.rows, vectors.table
    states, _ = decoder.hidden(memory, vectors, entered if columns is None else columns[entered])
    rows = torch.arange(len(paths), device=paths.device).repeat_interleave(paths.shape[1])
    biases = [bias.take(rows) for bias in memory.biases]
    steps = path_log_probabilities(
        states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, paths.flatten(0, 1), columns, biases
    )
    return steps.view(paths.shape)


def chunks(
    policy: Policy,
    collator: Collator,
    requests: Requests,
    size: int,
    users: np.ndarray | None = None,
    counted: bool = False,
) -> Iterator[tuple[np.ndarray, PolicyRequests]]:
    """Requests through the frozen network in chunks of similar history length, with their indices.

    ``users`` and ``counted`` as in ``Policy.encode``.
    """
    order = np.argsort(np.minimum(np.diff(requests.offsets), collator.model.max_length), kind="stable")
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        yield rows, policy.encode(collator, requests.take(rows), None if users is None else users[rows], counted)
