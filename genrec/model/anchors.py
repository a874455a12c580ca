"""Preference anchors: a request attends over the neighbours of the user's last events (OnePiece, arXiv 2509.18091).

The tables of ``genrec/retrieval/neighbours.py`` are buffers, saved with the weights, so that a bundle needs no log. A
training request takes its own user out of every count before the neighbours are ranked; what is left is what other
users did, as for a new request. Items that the request has seen are no anchors, since the context holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.model.dropout import Dropout
from genrec.model.query_anchors import QueryHits, QueryTables
from genrec.retrieval.neighbours import AnchorTable, strength
from genrec.retrieval.similar_texts import SHARPNESS

RECENT = 3  # newest events whose neighbours become anchors
MIN_STRENGTH = 1e-4  # smaller values are rounding errors
QUERY_ANCHORS = 8  # of each kind, where recent events have no anchors
SPARE = 2  # times as many neighbours are kept as are used: without the user's own counts others may rank higher

Group = tuple[Tensor, Tensor, Tensor]  # ids, live and features of some anchors


def n_features(queries: bool) -> int:
    """Number of features of an anchor.

    Similarity, three counts, strength; which recent event it belongs to, or the top of category and brand. With
    ``queries`` also similarity to the query, word match, and whether the query names it or users chose it after its
    words.
    """
    return 5 + RECENT + 1 + 4 * queries


@dataclass
class Anchors:
    """A anchors of each of R requests in B sequences.

    ``ids`` (B, R, A) item ids, 0 where hidden; ``live`` (B, R, A) bool; ``features`` (B, R, A, F).
    """

    ids: Tensor
    live: Tensor
    features: Tensor

    def take(self, row: Tensor, column: Tensor) -> Anchors:
        """Anchors of some requests (N,), each in a row of its own."""
        return Anchors(*(values[row, column][:, None] for values in (self.ids, self.live, self.features)))

    def at(self, slots: Tensor) -> Anchors:
        """Anchors of the requests with flat indices ``slots`` (N,), each in a row of its own."""
        return Anchors(*(values.flatten(0, 1)[slots][:, None] for values in (self.ids, self.live, self.features)))


class AnchorTables(nn.Module):
    """Neighbours of every item, and the choice among them for each request.

    ``per_event`` neighbours of each recent event become anchors; as many of the top of category and brand, and with
    ``queries`` of each kind that goes with the request's query. Items that were added since have no rows.
    """

    neighbours: Tensor  # (n_items, width) int32, -1 for none
    counts: Tensor  # (n_items, width, 3)
    top_items: Tensor  # (n_items, width) int32: half for the category, half for the brand
    users: Tensor  # (n_items,) users of each item

    def __init__(self, n_items: int, per_event: int, queries: bool = False):
        super().__init__()
        width, self.per_event = SPARE * per_event, per_event
        self.queries = QueryTables(width or SPARE * QUERY_ANCHORS) if queries else None
        self.register_buffer("neighbours", torch.full((n_items, width), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(n_items, width, 3))
        self.register_buffer("top_items", torch.full((n_items, width), -1, dtype=torch.int32))
        self.register_buffer("users", torch.zeros(n_items))

    def fill(self, table: AnchorTable, top_items) -> None:
        """Copy counted values; ``top_items`` (n_items, width) of each item's category and brand."""
        counted = {"neighbours": table.ids, "counts": table.counts, "top_items": top_items, "users": table.users}
        for name, values in counted.items():
            getattr(self, name).copy_(torch.as_tensor(values))

    @torch.no_grad()
    def choose(
        self,
        items: Tensor,
        lengths_before: Tensor,
        targets: Tensor | None = None,
        hits: QueryHits | None = None,
        later: Tensor | None = None,
    ) -> Anchors:
        """Anchors of requests that see the first ``lengths_before`` (B, R) events of ``items`` (B, T).

        With ``targets`` (B, R), -1 for none, all events of the sequence, later ones and targets included, are taken
        out of the counts, and with them the users' ``later`` (B, L) events. ``hits``: items that go with the requests'
        queries.
        """
        user = _User(items, lengths_before, targets, later)
        kinds = torch.eye(RECENT + 1 + 2 * (self.queries is not None), device=items.device)
        groups: list[Group] = []
        tags: list[Tensor] = []
        if self.per_event:
            groups = self._of_recent_events(user)
            tags = [
                kinds[:RECENT].repeat_interleave(self.per_event, 0),
                *(kinds[RECENT].expand(group[0].shape[-1], -1) for group in groups[1:]),
            ]
        if hits is not None:
            for kind, group in enumerate((self._named(user, hits), self._chosen(user, hits)), RECENT + 1):
                groups.append(group)
                tags.append(kinds[kind].expand(group[0].shape[-1], -1))
        ids, live, features = (torch.cat(values, dim=2) for values in zip(*groups, strict=True))
        tag = torch.cat(tags).expand(*ids.shape[:2], -1, -1)
        return Anchors(ids.clamp(min=0), live, torch.cat([features, tag], dim=-1))

    def _of_recent_events(self, user: _User) -> list[Group]:
        """Neighbours of the newest events, and the top of category and of brand of the last one."""
        index = (
            user.before[..., None] - 1 - torch.arange(RECENT, device=user.items.device)
        )  # (B, R, RECENT), newest first
        recent = user.items.gather(1, index.clamp(min=0).flatten(1)).view(index.shape)
        counted = recent < self.users.shape[0]  # not an item that was added after the counts were made
        exists, recent = (index >= 0) & counted, torch.where(counted, recent, 0)
        ids, live, features = (values.flatten(2, 3) for values in self._cooccurring(user, recent, exists))
        return [(ids, live, features), *self._top_of_category_and_brand(user, recent[:, :, 0], exists[:, :, :1])]

    def _cooccurring(self, user: _User, recent: Tensor, exists: Tensor) -> Group:
        """Neighbours of the recent events (B, R, RECENT): ids and live (B, R, RECENT, per_event), features."""
        ids = self.neighbours[recent].long()  # (B, R, RECENT, W)
        seen, own = (values.view_as(ids) for values in user.contains(ids.flatten(2)))
        together, after, before = self.counts[recent].unbind(-1)
        together = together - own.float()
        counted = float(user.targets is not None)  # the user is among the users of the event and of their own items
        if user.targets is not None:
            newest = (torch.arange(RECENT, device=ids.device) == 0)[:, None]
            after = after - ((ids == user.next_event()[..., None, None]) & newest).float()
        scale = (self.users[recent][..., None] + 1 - counted).clamp(min=1).rsqrt() * (
            self.users[ids.clamp(min=0)] + 1 - own.float()
        ).clamp(min=1).rsqrt()
        score = strength(together.clamp(min=0), after.clamp(min=0), before, scale)
        live = (ids >= 0) & ~seen & exists[..., None] & ((together > 0) | (after > 0) | (before > 0))
        features = torch.stack(
            [
                together.clamp(min=0) * scale,
                together.clamp(min=0).log1p(),
                after.clamp(min=0).log1p(),
                before.log1p(),
                score,
            ],
            -1,
        )
        return _top(ids, live, score, self._pad(features), self.per_event)

    def _top_of_category_and_brand(self, user: _User, newest: Tensor, exists: Tensor) -> list[Group]:
        """Top items of the category and of the brand of the ``newest`` events (B, R), a group of each."""
        ids = self.top_items[newest].long()  # (B, R, W)
        seen, users = self._users(user, ids)
        live = (ids >= 0) & ~seen & exists & (users > 0)
        features, half = self._plain(users, torch.zeros_like(users)), ids.shape[2] // 2
        groups = []
        for columns in (slice(0, half), slice(half, None)):
            some_ids, some_live, score, some = (values[:, :, columns] for values in (ids, live, users, features))
            groups.append(_top(some_ids, some_live, score, some, self.per_event // 2))
        return groups

    def _named(self, user: _User, hits: QueryHits) -> Group:
        """Items that the query names; of those named equally well the more popular first."""
        seen, users = self._users(user, hits.named)
        score = (hits.similarity + hits.word_match) * SHARPNESS + users.log1p()
        features = self._plain(users, score)
        features[..., -2], features[..., -1] = hits.similarity, hits.word_match
        live = ((hits.similarity > 0) | (hits.word_match > 0)) & ~seen
        return _top(hits.named, live, score, features, self._per_kind)

    def _chosen(self, user: _User, hits: QueryHits) -> Group:
        """Items that other users chose after the query's words."""
        seen, users = self._users(user, hits.chosen)
        strength = hits.strength
        if user.targets is not None:
            strength = strength - hits.unit * (hits.chosen == user.targets[..., None])
        live = (strength > MIN_STRENGTH) & ~seen
        return _top(hits.chosen, live, strength, self._plain(users, strength.clamp(min=0).log1p()), self._per_kind)

    @property
    def _per_kind(self) -> int:
        """Anchors of each kind that go with a query."""
        return self.per_event or QUERY_ANCHORS

    def _users(self, user: _User, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each request has seen ids (B, R, A), and how many other users they have."""
        seen, own = user.contains(ids)
        n_counted = self.users.shape[0]
        users = torch.where(ids < n_counted, self.users[ids.clamp(min=0, max=n_counted - 1)], 0.0)
        return seen, (users - own.float()).clamp(min=0)

    def _plain(self, users: Tensor, score: Tensor) -> Tensor:
        """Features of anchors without co-occurrence counts."""
        zero = torch.zeros_like(users)
        return self._pad(torch.stack([zero, users.log1p(), zero, zero, score], -1))

    def _pad(self, features: Tensor) -> Tensor:
        """Add columns for the similarity to a query and for its words, where there are queries."""
        return features if self.queries is None else F.pad(features, (0, 2))


@dataclass(frozen=True)
class _User:
    """Events (B, T) of the user of each sequence, how many each request sees (B, R), and targets (B, R), or None.

    With targets perhaps also ``later`` events (B, L), -1 for padding.
    """

    items: Tensor
    before: Tensor
    targets: Tensor | None
    later: Tensor | None = None

    def contains(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether ids (B, R, A) are among the events a request sees, and among all counted events of the user.

        Two (B, R, A) bool.

        Without targets no event was counted. Context positions behind a sequence's end hold item 0; no request sees
        them, and in training they lie behind every request's last event.
        """
        items, index = self.items, torch.arange(self.items.shape[1], device=ids.device).expand(ids.shape[0], -1)
        items = torch.where(index < self.before.amax(1, keepdim=True), items, -1)
        if self.targets is not None:
            items, index = torch.cat([items, self.targets], 1), torch.cat([index, self.before], 1)
            if self.later is not None:
                unseen = index.amax(1, keepdim=True) + 1
                items = torch.cat([items, self.later], 1)
                index = torch.cat([index, unseen.expand_as(self.later)], 1)
        keys, order = items.sort(dim=1, stable=True)
        match = torch.searchsorted(keys, ids.flatten(1)).clamp(max=keys.shape[1] - 1)
        own = (keys.gather(1, match) == ids.flatten(1)).view_as(ids)
        first = index.gather(1, order.gather(1, match)).view_as(ids)
        seen = own & (first < self.before[..., None])
        return seen, own if self.targets is not None else torch.zeros_like(own)

    def next_event(self) -> Tensor:
        """The event right after those each request sees, target or not: (B, R) item ids, -1 for unknown."""
        assert self.targets is not None
        items, before = self.items, self.before
        length = items.shape[1]
        sequence = items.new_full((len(items), length + 2), -1)  # the last column takes requests without a target
        sequence.scatter_(1, torch.where(self.targets >= 0, before, length + 1), self.targets)
        sequence[:, -1] = -1
        inside = torch.arange(length, device=items.device) < before.amax(1, keepdim=True)
        sequence[:, :length] = torch.where(inside, items, sequence[:, :length])
        return sequence.gather(1, before)


def _top(ids: Tensor, live: Tensor, score: Tensor, features: Tensor, count: int) -> Group:
    """The ``count`` live anchors of the highest score along the last axis: ids, live, features."""
    order = score.masked_fill(~live, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return (
        ids.gather(-1, order),
        live.gather(-1, order),
        features.gather(-2, order[..., None].expand(*order.shape, features.shape[-1])),
    )


class AnchorTokens(nn.Module):
    """Keys and values of anchors from item vectors and features, computed once for all layers that use them."""

    def __init__(self, dim: int, heads: int, features: int):
        super().__init__()
        self.heads = heads
        self.item = nn.Linear(dim, 2 * dim, bias=False)
        self.counts = nn.Linear(features, 2 * dim, bias=False)

    def forward(self, anchors: Anchors, items: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, R, A, heads, dim / heads) of anchors, given item vectors (n_items, dim)."""
        if self.training and items.device.type == "cpu":  # a training batch repeats popular and hidden anchors
            ids, index = anchors.ids.unique(return_inverse=True)
            tokens = F.embedding(index, self.item(F.embedding(ids, items)))
        elif anchors.ids.numel() > items.shape[0]:  # projecting all items costs less than projecting repeats
            tokens = F.embedding(anchors.ids, self.item(items))
        else:
            tokens = self.item(F.embedding(anchors.ids, items))
        return (tokens + self.counts(anchors.features)).unflatten(-1, (2, self.heads, -1)).unbind(-3)


class AnchorAttention(nn.Module):
    """Attention of request states over their anchors, with a learned bias from each anchor's features.

    A null key is always visible.
    """

    def __init__(self, dim: int, heads: int, dropout: float, features: int):
        super().__init__()
        self.norm, self.query = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        self.bias = nn.Linear(features, heads)
        self.null = nn.Parameter(torch.zeros(2, heads, dim // heads))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)  # a request begins as the vector of its last event
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, anchors: Anchors, vectors: Tensor, tokens: AnchorTokens) -> Tensor:
        """The update (B, R, M, dim) of states x of each request's M tokens.

        ``vectors`` (B, R, A, dim) are the anchors' item vectors, and ``tokens`` has the projections to keys and values.
        Equals attention over ``tokens(anchors, items)`` but for rounding: the projections move to the side of the few
        request tokens (as in DeepSeek-V2, arXiv 2405.04434, 2.1), so that the many anchors have no keys and values in
        memory, nor gradients of them.
        """
        heads = tokens.heads
        key, value = tokens.item.weight.unflatten(0, (2, heads, -1))  # (heads, dim / heads, dim) each
        count_key, count_value = tokens.counts.weight.unflatten(0, (2, heads, -1))
        query = self.query(self.norm(x)).unflatten(-1, (heads, -1))  # (B, R, M, heads, dim / heads)
        query = query * query.shape[-1] ** -0.5
        by_item = torch.einsum("brmhd,hdi->brmhi", query, key).flatten(2, 3)  # (B, R, M x heads, dim)
        by_count = (torch.einsum("brmhd,hdf->brmhf", query, count_key) + self.bias.weight).flatten(2, 3)
        features = anchors.features.to(by_count.dtype)
        bias = (by_count @ features.transpose(2, 3)).unflatten(2, (-1, heads)) + self.bias.bias[:, None]
        bias = bias.masked_fill(~anchors.live[:, :, None, None], -torch.inf).flatten(2, 3)
        null = (query * self.null[0]).sum(-1).flatten(2, 3)[..., None]
        weights, items = attend_shared(by_item, vectors, torch.cat([null, bias], dim=-1))
        counts = (weights[..., 1:].to(features.dtype) @ features).unflatten(2, (-1, heads))
        mixed = torch.einsum("brmhi,hdi->brmhd", items.unflatten(2, (-1, heads)), value)
        mixed = mixed + torch.einsum("brmhf,hdf->brmhd", counts, count_value)
        null_value = weights[..., :1].unflatten(2, (-1, heads)) * self.null[1]
        return self.drop(self.out((null_value + mixed).flatten(3)))


def attend_shared(query: Tensor, vectors: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention whose keys are its values: weights (..., Q, 1 + A) and mixtures (..., Q, dim).

    ``query`` (..., Q, dim) sees ``vectors`` (..., A, dim), and ``bias`` (..., Q, 1 + A) is added to its dot products;
    column 0 is a null key, which has no vector and only a bias.
    """
    if query.device.type == "cpu" and query.dtype == vectors.dtype == torch.float32:
        return _AttendShared.apply(query, vectors, bias)
    logits = torch.cat([bias[..., :1], bias[..., 1:] + query @ vectors.transpose(-1, -2)], dim=-1)
    weights = logits.softmax(-1)
    return weights, weights[..., 1:].to(vectors.dtype) @ vectors


class _AttendShared(torch.autograd.Function):
    """``attend_shared`` with one pass over the vectors for their gradient, and products in the order that CPUs do well.

    A few queries times many vectors: measured on 420 requests of 2 queries and 48 vectors of 128, the product of
    vectors and queries takes a third of the time of queries and vectors, and a joint gradient a sixth of two.
    """

    @staticmethod
    def forward(ctx, query: Tensor, vectors: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = bias.clone()
        logits[..., 1:] += (vectors @ query.transpose(-1, -2)).transpose(-1, -2)
        weights = logits.softmax(-1)
        ctx.save_for_backward(query, vectors, weights)
        return weights, weights[..., 1:] @ vectors

    @staticmethod
    def backward(ctx, d_weights: Tensor, d_mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, vectors, weights = ctx.saved_tensors
        d_weights = d_weights.clone()
        d_weights[..., 1:] += (vectors @ d_mixed.transpose(-1, -2)).transpose(-1, -2)
        d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
        both = torch.cat([d_logits[..., 1:], weights[..., 1:]], dim=-2).transpose(-1, -2)
        d_vectors = both @ torch.cat([query, d_mixed], dim=-2)
        return d_logits[..., 1:] @ vectors, d_vectors, d_logits
