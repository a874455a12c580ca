"""The code decoder: generates an item's semantic ID level by level, as a walk from the trie's root to a leaf.

Each level's distribution runs over the *legal children* of the node reached so far, in training and in decoding, so
that no probability is lost on identifiers that do not exist. A child's score is the dot product of the decoder's
state with its node vector: its code's vector, a vector of its own, and the mean vector of the items below it. The
backbone has run before: the decoder attends to its context states and starts from the request state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.trie import LARGE_TRIE, CatalogueTrie
from genrec.memory import zeros_on_demand
from genrec.model.anchors import Anchors, AnchorTokens
from genrec.model.dropout import Dropout
from genrec.model.node_vectors import NodeVectors, means_of, node_means, read_nodes, row_of_nodes
from genrec.model.pointer import CopyBias, Pointer
from genrec.model.prior import INITIAL_SCALE, RetrievalPrior

BLOCK = 1 << 17  # nodes whose vectors are made at once


@dataclass
class Memory:
    """Projected context, shared by all beams of a request.

    ``state`` (B, R, dim) request states; ``keys`` and ``values`` per layer (B, heads, S, dim / heads); ``mask`` (B,
    R, S). S = 1 + T + R x P: a null token, the context, and P private positions that only their own request sees
    (reasoning blocks, anchors). ``copy_bias`` and ``prior``: what anchors (``model.pointer``) and the retrieval head
    (``model.prior``) add to the logits of nodes.
    """

    state: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    copy_bias: CopyBias | None = None
    prior: RetrievalPrior | None = None

    @property
    def biases(self) -> list[CopyBias | RetrievalPrior]:
        """All that is added to the logits of nodes."""
        return [bias for bias in (self.prior, self.copy_bias) if bias is not None]

    def take(self, row: Tensor, column: Tensor) -> Memory:
        """Some requests (N,) as rows of their own (B = N, R = 1), before private positions are added.

        Padding then costs nothing.
        """
        keys, values = [k[row] for k in self.keys], [v[row] for v in self.values]
        return Memory(self.state[row, column][:, None], keys, values, self.mask[row, column][:, None])


class DecoderLayer(nn.Module):
    """Self-attention over earlier levels, cross-attention to the context, feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.self_norm, self.cross_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.self_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.query, self.key_value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.cross_out = nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.drop = Dropout(dropout)

    def project_memory(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, length, dim / heads) of context (batch, length, dim)."""
        batch, length, _ = context.shape
        return self.key_value(context).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States of x (B, R, L, dim), new levels of R walks, and the cache with them.

        ``cache`` holds keys and values (B x R, heads, earlier levels, dim / heads).
        """
        batch, walks, levels, dim = x.shape
        rate = self.dropout if self.training else 0.0
        q, k, v = self.qkv(self.self_norm(x)).view(batch * walks, levels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None, dropout_p=rate)
        x = x + self.drop(self.self_out(mixed.transpose(1, 2).reshape(batch, walks, levels, dim)))
        q = self.query(self.cross_norm(x)).view(batch, walks * levels, self.heads, -1).transpose(1, 2)
        spread = mask[:, None, :, None].expand(-1, -1, walks, levels, -1).reshape(batch, 1, walks * levels, -1)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=spread, dropout_p=rate)
        x = x + self.drop(self.cross_out(mixed.transpose(1, 2).reshape(batch, walks, levels, dim)))
        return x + self.drop(self.down(F.gelu(self.up(self.feed_norm(x))))), (k, v)


class CodeDecoder(nn.Module):
    """Walks the catalogue trie; see the module's docstring."""

    code_row: Tensor  # (n_nodes,) row of each node's code in the code table
    code_start: Tensor  # (levels + 1,) first row of each level in the code table; the last row is the root's
    own_nodes: Tensor | None  # (m,) the nodes that have a row in ``nodes``; None in small tries, where all have one
    node_row: Tensor | None  # (n_nodes,) row of each node in ``nodes``; with ``own_nodes``

    def __init__(
        self,
        trie: CatalogueTrie,
        dim: int,
        layers: int,
        heads: int,
        dropout: float,
        temperature: float,
        anchor_features: int = 0,
        pointer: bool = False,
        prior: bool = False,
    ):
        """``anchor_features``: number of features of an anchor, 0 without anchors; ``pointer``: it may copy them.

        ``prior``: the retrieval head's distribution is part of the logits.
        """
        super().__init__()
        self.levels = trie.depth
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, dropout) for _ in range(layers))
        self.anchors = (
            nn.ModuleList(AnchorTokens(dim, heads, anchor_features) for _ in range(layers)) if anchor_features else None
        )
        self.pointer = Pointer(dim, trie.depth, anchor_features) if pointer else None
        self.norm = nn.LayerNorm(dim)
        self.null = nn.Parameter(torch.zeros(1, 1, dim))
        self.level = nn.Parameter(torch.randn(self.levels, dim) * 0.02)
        self.heads = nn.ModuleList(nn.Linear(dim, dim) for _ in range(self.levels))
        scale = INITIAL_SCALE if prior else 1 / temperature
        self.log_scale = nn.Parameter(torch.full((self.levels,), math.log(scale)))
        self.prior_weight = nn.Parameter(torch.ones(1)) if prior else None  # no scalar: it could not be sharded
        node_level = torch.repeat_interleave(torch.arange(-1, self.levels), trie.level_start.diff())
        sizes = torch.tensor([int(trie.node_code[node_level == level].max()) + 1 for level in range(self.levels)])
        code_start = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        rows = trie.node_code.clamp(min=0) + code_start[node_level.clamp(min=0)]
        self.register_buffer("code_row", torch.where(node_level < 0, code_start[-1], rows), persistent=False)
        self.register_buffer("code_start", code_start, persistent=False)
        self.register_buffer("own_nodes", None, persistent=False)
        self.register_buffer("node_row", None, persistent=False)
        self.codes = nn.Embedding(int(code_start[-1]) + 1, dim)
        self.nodes = nn.Embedding(0, dim)
        if trie.n_nodes > LARGE_TRIE:
            self.keep_read(trie)
        else:
            self.nodes = nn.Embedding(trie.n_nodes, dim)
        # Own vectors of nodes that left the trie with their last item, by the codes on the way up from the node.
        self.departed: dict[tuple[int, ...], Tensor] = {}
        own = len(self.nodes.weight) if self.own_nodes is None else len(self.own_nodes)
        for table in (self.codes.weight, self.nodes.weight[:own]):
            nn.init.normal_(table, std=0.02)
        self.project = nn.Linear(dim, dim, bias=False)
        # A child is scored by the request's likeness to the items below it before anything is learnt.
        for linear in (self.project, *self.heads):
            nn.init.eye_(linear.weight)
        self.node_norm = nn.LayerNorm(dim)

    def means(self, trie: CatalogueTrie, items: Tensor) -> Tensor:
        """The mean of item vectors (n_items, dim) below each node, in the rows of ``nodes``."""
        if self.own_nodes is None or self.node_row is None:
            return node_means(trie, items)
        return means_of(trie, items, self.own_nodes, self.node_row)

    def some_node_vectors(
        self, trie: CatalogueTrie, items: Tensor, nodes: Tensor, means: Tensor | None = None
    ) -> Tensor:
        """Vectors of trie ``nodes`` (N,): (N, dim). Of nodes that no search reads they have no meaning in large tries.

        ``items`` (n_items, dim) are item vectors; ``means`` those of ``means``, where the caller keeps them.
        """
        rows = nodes if self.node_row is None else self.node_row[nodes].long()
        means = self.means(trie, items) if means is None else means
        return self.node_norm(
            self.codes(self.code_row[nodes]) + self.nodes(rows) + self.project(F.embedding(rows, means))
        )

    def node_vectors(self, trie: CatalogueTrie, items: Tensor, means: Tensor | None = None) -> Tensor | NodeVectors:
        """What searches read: the vectors of all trie nodes (n_nodes, dim), in large tries of ``own_nodes`` alone.

        ``items`` and ``means`` as in ``some_node_vectors``.
        """
        # There are fewer items than nodes: project before the mean.
        vectors = self.means(trie, self.project(items)) if means is None else self.project(means)
        code_row = self.code_row if self.own_nodes is None else F.pad(self.code_row[self.own_nodes], (0, 1))
        if torch.is_grad_enabled() or len(vectors) <= BLOCK:
            vectors = self.node_norm(self.codes(code_row) + self.nodes.weight + vectors)
        else:  # written over the means block by block
            for begin in range(0, len(vectors), BLOCK):
                rows = slice(begin, begin + BLOCK)
                vectors[rows] = self.node_norm(self.codes(code_row[rows]) + self.nodes.weight[rows] + vectors[rows])
        if self.node_row is None:
            return vectors
        vectors[-1] = 0
        return NodeVectors(vectors, self.node_row)

    def keep_read(self, trie: CatalogueTrie) -> None:
        """Give own vectors, which begin as zeros, to the nodes of a trie alone that searches read.

        All others share the last row of ``nodes``, which stays 0.
        """
        read, old = read_nodes(trie), self.nodes.weight
        self.own_nodes, self.node_row = read, row_of_nodes(trie, read)
        zeros = zeros_on_demand(len(read) + 1, old.shape[1], like=old)
        self.nodes = nn.Embedding.from_pretrained(zeros, freeze=False)

    @property
    def _layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def memory(self, state: Tensor, context: Tensor, visible: Tensor) -> Memory:
        """Memory of request states (B, R, dim) and context (B, T, dim), seen as ``visible`` (B, R, T) says.

        A learned null token is always visible.
        """
        context = torch.cat([self.null.expand(context.shape[0], -1, -1), context], dim=1)
        projected = [layer.project_memory(context) for layer in self._layers]
        mask = torch.cat([visible.new_ones(*visible.shape[:2], 1), visible], dim=-1)
        return Memory(state, [k for k, _ in projected], [v for _, v in projected], mask)

    def with_private(self, memory: Memory, thoughts: Tensor | None, anchors: Anchors | None, items: Tensor) -> Memory:
        """The memory with private positions: ``thoughts`` (B, R, P, dim), reasoning states, and anchors."""
        requests = memory.state.shape[1]
        anchors = None if self.anchors is None else anchors
        live = []
        if thoughts is not None:
            live.append(torch.ones(thoughts.shape[:3], dtype=torch.bool, device=thoughts.device))
        if anchors is not None:
            live.append(anchors.live)
        if not live:
            return memory
        keys, values = [], []
        for index, layer in enumerate(self._layers):
            private: list[tuple[Tensor, Tensor]] = []  # keys and values (B, heads, R, P, dim / heads)
            if thoughts is not None:
                key, value = layer.project_memory(thoughts.flatten(1, 2))
                private.append((key.unflatten(2, (requests, -1)), value.unflatten(2, (requests, -1))))
            if anchors is not None and self.anchors is not None:
                key, value = self.anchors[index](anchors, items)
                private.append((key.permute(0, 3, 1, 2, 4), value.permute(0, 3, 1, 2, 4)))
            own_keys, own_values = (torch.cat(tokens, dim=3).flatten(2, 3) for tokens in zip(*private, strict=True))
            keys.append(torch.cat([memory.keys[index], own_keys], dim=2))
            values.append(torch.cat([memory.values[index], own_values], dim=2))
        same = torch.eye(requests, dtype=torch.bool, device=items.device)[..., None]
        own = same & torch.cat(live, dim=2)[:, None]  # (B, R, R, P)
        return Memory(memory.state, keys, values, torch.cat([memory.mask, own.flatten(2)], dim=-1))

    def hidden(
        self,
        memory: Memory,
        vectors: Tensor | NodeVectors,
        nodes: Tensor,
        first: int = 0,
        cache: list | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Unit states (B, R, L, dim) that score the children of ``nodes`` (B, R, L), and the cache for the next level.

        The nodes have levels first to first + L - 1. ``memory.state`` and ``memory.mask`` may have one row per
        request while nodes has R beams of it; they are shared.
        """
        levels = nodes.shape[2]
        x = vectors[nodes] + memory.state[:, :, None] + self.level[first : first + levels]
        grown = []
        for index, layer in enumerate(self.layers):
            past = cache[index] if cache else None
            x, kept = layer(x, memory.keys[index], memory.values[index], memory.mask, past)
            grown.append(kept)
        x = self.norm(x)
        out = torch.stack([self.heads[first + level](x[:, :, level]) for level in range(levels)], dim=2)
        return F.normalize(out, dim=-1), grown
