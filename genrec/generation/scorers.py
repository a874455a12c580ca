"""Scorers for the search: cached (every prefix runs once) and uncached (recomputes every prefix; the reference)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.generation.beam import beam_search
from genrec.generation.constraints import Constraint
from genrec.model.code_decoder import CodeDecoder, DecoderLayer, Memory
from genrec.model.node_vectors import NodeVectors
from genrec.retrieval.products import owned_products

# Floats gathered at a time for the dot products of children, which bounds the memory of a large batch.
GATHER_BUDGET = 1 << 22


def project_rows(layer: DecoderLayer, x: Tensor) -> Tensor:
    """Queries, keys and values of rows x (B, M, dim) among their ancestors: (B, M, 3 x dim)."""
    return layer.qkv(layer.self_norm(x))


def finish_rows(layer: DecoderLayer, x: Tensor, mixed: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The rest of a layer after the attention to ancestors.

    x and the attention result ``mixed`` are (B, M, dim); ``keys``, ``values`` and ``mask`` (B, 1, S) are the memory's.
    """
    batch, rows, dim = x.shape
    x = x + layer.self_out(mixed)
    q = layer.query(layer.cross_norm(x)).view(batch, rows, layer.heads, -1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None].expand(-1, -1, rows, -1))
    x = x + layer.cross_out(mixed.transpose(1, 2).reshape(batch, rows, dim))
    return x + layer.down(F.gelu(layer.up(layer.feed_norm(x))))


class CachedScorer:
    """Keeps each expanded prefix as a row of an append-only pool: keys, values, state, and the slots of its ancestors.

    Beams refer to rows of the pool, so rows are never reordered, rows of several depths can run together (best-first
    search), and all rows share the context's keys and values.
    """

    def __init__(self, decoder: CodeDecoder, memory: Memory, vectors: Tensor | NodeVectors, rows: int = 64):
        """``rows``: room in the pool at first; it grows."""
        self.decoder, self.memory, self.vectors = decoder, memory, vectors
        batch, heads = len(memory.state), memory.keys[0].shape[1]
        width = vectors.shape[1]
        self.used = self.deepest = 0
        # First the keys and values of each layer, then the states.
        kept, dtype = (batch, rows, heads, width // heads), memory.state.dtype
        self.pool = [vectors.new_empty(kept, dtype=dtype) for _ in range(2 * len(decoder.layers))] + [
            vectors.new_empty(batch, rows, width)
        ]
        self.line = torch.zeros(
            batch, rows, decoder.levels, dtype=torch.long, device=vectors.device
        )  # slots from the root to the row
        self.batch = torch.arange(batch, device=vectors.device)[:, None]
        self.scale = decoder.log_scale.exp()

    def expand(self, depth: int | Tensor, nodes: Tensor, parents: Tensor | None) -> int:
        """As ``Scorer.expand``."""
        slot, rows = self.used, nodes.shape[1]
        self._reserve(slot + rows)
        self.used = slot + rows
        own = torch.arange(slot, slot + rows, device=nodes.device).expand(len(nodes), -1)
        line = self.line[:, slot : slot + rows]
        if parents is not None:
            line.copy_(self.line[self.batch, parents])
        if isinstance(depth, int):
            line[..., depth], self.deepest = own, depth
            reach, known = line[..., : depth + 1], None
        else:
            line.scatter_(2, depth[..., None], own[..., None])
            # No row can be deeper: its parent came in an earlier call.
            self.deepest = min(self.deepest + 1, line.shape[2] - 1)
            reach = line[..., : self.deepest + 1]
            known = torch.arange(reach.shape[2], device=nodes.device) <= depth[..., None]
        x = (self.vectors[nodes] + self.memory.state + self.decoder.level[depth]).to(self.memory.state.dtype)
        for index, layer in enumerate(self.decoder.layers):
            assert isinstance(layer, DecoderLayer)
            x = self._layer(index, layer, x, slot, reach, known)
        self.pool[-1][:, slot : slot + rows] = self._head(self.decoder.norm(x), depth)
        return slot

    def _layer(
        self, index: int, layer: DecoderLayer, x: Tensor, slot: int, reach: Tensor, known: Tensor | None
    ) -> Tensor:
        """One layer on x (B, M, dim): each row attends to its own ancestors, then to the shared context."""
        batch, rows, dim = x.shape
        keys, values = self.pool[2 * index], self.pool[2 * index + 1]
        q, k, v = project_rows(layer, x).view(batch, rows, 3, layer.heads, -1).unbind(2)
        keys[:, slot : slot + rows], values[:, slot : slot + rows] = k, v
        if reach.shape[2] == 1 and known is None:  # the root sees itself alone
            mixed = v
        else:
            row = (reach + self.batch[..., None] * keys.shape[1]).flatten()
            k, v = (  # (B, M, levels, heads, dim / heads)
                part.flatten(0, 1).index_select(0, row).view(*reach.shape, *part.shape[2:]) for part in (keys, values)
            )
            weight = (q[:, :, None] * k).sum(-1).float() * q.shape[-1] ** -0.5
            if known is not None:
                weight = weight.masked_fill(~known[..., None], -torch.inf)
            mixed = (weight.softmax(2).to(v.dtype)[..., None] * v).sum(2)
        return finish_rows(
            layer,
            x,
            mixed.reshape(batch, rows, dim),
            self.memory.keys[index],
            self.memory.values[index],
            self.memory.mask,
        )

    def _head(self, x: Tensor, depth: int | Tensor) -> Tensor:
        heads = self.decoder.heads
        if isinstance(depth, int):
            return F.normalize(heads[depth](x), dim=-1) * self.scale[depth]
        # Best-first search runs the root apart, and then rows of all depths reached so far together.
        chosen = heads[1](x)
        for level in range(2, self.deepest + 1):
            chosen = torch.where(depth[..., None] == level, heads[level](x), chosen)
        return F.normalize(chosen, dim=-1) * self.scale[depth][..., None]

    def root_logits(self, first: int, last: int) -> Tensor:
        """As ``Scorer.root_logits``."""
        logits = self.pool[-1][:, 0] @ self.vectors[first:last].T
        for bias in self.memory.biases:
            logits = logits + bias.for_range(first, last)
        return logits

    def child_logits(self, children: Tensor, slots: Tensor) -> Tensor:
        """As ``Scorer.child_logits``."""
        batch, columns = children.shape
        step = max(GATHER_BUDGET // self.vectors.shape[1], 1)
        states = self.pool[-1].flatten(0, 1)
        rows = (slots + self.batch * self.pool[-1].shape[1]).flatten()
        flat = children.flatten()
        if states.device.type == "cpu":
            parts = [
                self.vectors.products(flat, states, rows)
                if isinstance(self.vectors, NodeVectors)
                else owned_products(states, self.vectors, rows, flat)
            ]
        else:  # plain look-ups, which a CUDA graph can hold
            parts = [
                torch.linalg.vecdot(self.vectors.index_select(0, child), states.index_select(0, row))
                for child, row in zip(flat.split(step), rows.split(step), strict=True)
            ]
        logits = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(batch, columns)
        for bias in self.memory.biases:
            logits = logits + bias.for_rows(children)
        return logits

    def select(self, requests: Tensor) -> None:
        """As ``Scorer.select``."""
        memory = self.memory
        self.memory = Memory(
            memory.state[requests],
            [k[requests] for k in memory.keys],
            [v[requests] for v in memory.values],
            memory.mask[requests],
            None if memory.copy_bias is None else memory.copy_bias.take(requests),
            None if memory.prior is None else memory.prior.take(requests),
        )
        self.pool, self.line = [part[requests] for part in self.pool], self.line[requests]
        self.batch = self.batch[: len(requests)]

    def _reserve(self, rows: int) -> None:
        held = self.line.shape[1]
        if rows > held:
            more = max(rows, 2 * held) - held
            self.pool = [
                torch.cat([part, part.new_empty(len(part), more, *part.shape[2:])], dim=1) for part in self.pool
            ]
            self.line = F.pad(self.line, (0, 0, 0, more))


def generate(
    decoder: CodeDecoder,
    memory: Memory,
    vectors: Tensor | NodeVectors,
    trie: CatalogueTrie,
    width: int,
    allowed: Tensor | Constraint | None = None,
) -> tuple[Tensor, Tensor]:
    """Leaves (B, W) and log-probabilities of a plain beam search; see ``beam_search``."""
    result = beam_search(
        trie, CachedScorer(decoder, memory, vectors, 1 + width * trie.depth), len(memory.state), width, allowed
    )
    return result.leaves, result.scores
