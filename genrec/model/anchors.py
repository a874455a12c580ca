"""Preference anchors in the network: a request attends over the neighbours of the person's last events (OnePiece, arXiv 2509.18091).

The tables of ``genrec/retrieval/neighbours.py`` are buffers, saved with the weights, so that a bundle needs no log. In training a request takes its
own person's part out of every count before the neighbours are ranked: what is left is what other people did, as it is for a new request.
An item that the request has already seen is no anchor; the context holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.model.dropout import Dropout
from genrec.model.query_anchors import SHARPNESS, QueryHits, QueryTables
from genrec.retrieval.neighbours import AnchorTable, strength

RECENT = 3  # events whose company is shown
LEAST_STRENGTH = 1e-4  # below it nothing is left but rounding
SPARE = (
    2  # so many times the neighbours that are shown are looked at: taking a person's own part out may move others up
)


def n_features(queries: bool) -> int:
    """Per anchor: similarity, three counts, strength; which event it belongs to, or the shelf. With ``queries`` also likeness to the query,
    and that it goes with its text or with its words.
    """
    return 5 + RECENT + 1 + 3 * queries


@dataclass
class Anchors:
    """Per request R of B sequences A anchors: ``ids`` (B, R, A) item ids (0 where hidden), ``live`` (B, R, A) bool, ``features`` (B, R, A, F)."""

    ids: Tensor
    live: Tensor
    features: Tensor

    def take(self, row: Tensor, lane: Tensor) -> Anchors:
        return Anchors(*(part[row, lane][:, None] for part in (self.ids, self.live, self.features)))


class AnchorTables(nn.Module):
    """Neighbours of every item, and their choice for requests.

    ``shown``: company per recent event; as many again of the shelf, and with ``queries`` of each kind that goes with the request's query.
    """

    def __init__(self, n_items: int, shown: int, queries: bool = False):
        super().__init__()
        width, self.shown = SPARE * shown, shown
        self.queries = QueryTables(width) if queries else None
        self.register_buffer("neighbours", torch.full((n_items, width), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(n_items, width, 3))
        self.register_buffer("top_items", torch.full((n_items, width), -1, dtype=torch.int32))
        self.register_buffer("users", torch.zeros(n_items))

    def fill(self, table: AnchorTable, shelf) -> None:
        """Take over what was counted."""
        for name, values in (
            ("neighbours", table.ids),
            ("counts", table.counts),
            ("top_items", shelf),
            ("users", table.users),
        ):
            getattr(self, name).copy_(torch.as_tensor(values))

    def grow(self, n_items: int) -> None:
        """Rows for new items behind the others: nothing was counted of them."""
        for name, empty in (("neighbours", -1), ("counts", 0), ("top_items", -1), ("users", 0)):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_full((n_items - len(old), *old.shape[1:]), empty)]))

    @torch.no_grad()
    def choose(
        self, items: Tensor, lengths_before: Tensor, targets: Tensor | None = None, asked: QueryHits | None = None
    ) -> Anchors:
        """items (B, T) context, lengths_before (B, R) events each request sees, targets (B, R) in training (-1 none) -> the anchors.

        With ``targets`` every event of the sequence, later ones and targets included, is taken out of the counts. ``asked``: what goes with
        the requests' queries.
        """
        place = (
            lengths_before[..., None] - 1 - torch.arange(RECENT, device=items.device)
        )  # (B, R, RECENT), newest first
        recent = items.gather(1, place.clamp(min=0).flatten(1)).view(place.shape)
        known, person = place >= 0, _Person(items, lengths_before, targets)
        neighbours = [part.flatten(2, 3) for part in self._cooccurring(person, recent, known)]
        groups = [neighbours, *self._top_of_category_and_brand(person, recent[:, :, 0], known[:, :, :1])]
        kinds = torch.eye(RECENT + 1 + 2 * (self.queries is not None), device=items.device)
        tags = [
            kinds[:RECENT].repeat_interleave(self.shown, 0),
            *(kinds[RECENT].expand(side[0].shape[-1], -1) for side in groups[1:]),
        ]
        if asked is not None:
            groups += [self._near(person, asked), self._taken(person, asked)]
            tags += [
                kinds[RECENT + 1 + place].expand(group[0].shape[-1], -1) for place, group in enumerate(groups[-2:])
            ]
        ids, live, features = (torch.cat([group[part] for group in groups], dim=2) for part in range(3))
        tags = torch.cat(tags).expand(*ids.shape[:2], -1, -1)
        return Anchors(ids.clamp(min=0), live, torch.cat([features, tags], dim=-1))

    def _cooccurring(self, person: _Person, recent: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What other people had with the recent events (B, R, RECENT): ids, live (B, R, RECENT, shown) and their features."""
        ids = self.neighbours[recent].long()  # (B, R, RECENT, W)
        seen, own = (part.view_as(ids) for part in person.belongs(ids.flatten(2)))
        together, after, before = self.counts[recent].unbind(-1)
        together = together - own.float()
        if person.targets is not None:
            first = (torch.arange(RECENT, device=ids.device) == 0)[:, None]
            after = after - ((ids == person.coming()[..., None, None]) & first).float()
        mine = float(
            person.targets is not None
        )  # the person counts among those who had the item, and among those who had their other items
        scale = (self.users[recent][..., None] + 1 - mine).clamp(min=1).rsqrt() * (
            self.users[ids.clamp(min=0)] + 1 - own.float()
        ).clamp(min=1).rsqrt()
        score = strength(together.clamp(min=0), after.clamp(min=0), before, scale)
        live = (ids >= 0) & ~seen & known[..., None] & ((together > 0) | (after > 0) | (before > 0))
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
        return _top(ids, live, score, self._wide(features), self.shown)

    def _top_of_category_and_brand(
        self, person: _Person, last: Tensor, known: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The most taken items of the category and of the brand of the ``last`` events (B, R): ids, live (B, R, shown / 2), features of each."""
        ids = self.top_items[last].long()  # (B, R, W)
        seen, had = self._had(person, ids)
        live = (ids >= 0) & ~seen & known & (had > 0)
        features, half = self._plain(had, torch.zeros_like(had)), ids.shape[2] // 2
        parts = (slice(0, half), slice(half, None))
        return [_top(*(value[:, :, part] for value in (ids, live, had, features)), self.shown // 2) for part in parts]

    def _near(self, person: _Person, asked: QueryHits) -> tuple[Tensor, Tensor, Tensor]:
        """The items whose text is next to the query's, the more taken first among the equally near: ids, live (B, R, shown), features."""
        seen, had = self._had(person, asked.near)
        score = asked.likeness * SHARPNESS + had.log1p()
        features = self._plain(had, score)
        features[..., -1] = asked.likeness
        return _top(asked.near, (asked.likeness > 0) & ~seen, score, features, self.shown)

    def _taken(self, person: _Person, asked: QueryHits) -> tuple[Tensor, Tensor, Tensor]:
        """The items that others took after the query's words: ids, live (B, R, shown), features."""
        seen, had = self._had(person, asked.taken)
        strength = asked.strength
        if person.targets is not None:
            strength = strength - asked.unit * (asked.taken == person.targets[..., None])
        live = (strength > LEAST_STRENGTH) & ~seen
        return _top(asked.taken, live, strength, self._plain(had, strength.clamp(min=0).log1p()), self.shown)

    def _had(self, person: _Person, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each request has seen ids (B, R, A), and how many others had them."""
        seen, own = person.belongs(ids)
        return seen, (self.users[ids.clamp(min=0)] - own.float()).clamp(min=0)

    def _plain(self, had: Tensor, score: Tensor) -> Tensor:
        zero = torch.zeros_like(had)
        return self._wide(torch.stack([zero, had.log1p(), zero, zero, score], -1))

    def _wide(self, features: Tensor) -> Tensor:
        """With room for the likeness to a query, where there is such a group."""
        return features if self.queries is None else F.pad(features, (0, 1))


class _Person:
    """What is known of the person behind each sequence: events (B, T), how many of them each request sees (B, R), targets (B, R) or None."""

    def __init__(self, items: Tensor, before: Tensor, targets: Tensor | None):
        self.items, self.before, self.targets = items, before, targets

    def belongs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether ids (B, R, A) are among what each request has seen; and, with targets, among all that was counted of the person."""
        seen, own = _belongs(self.items, self.before, self.targets, ids)
        return seen, own if self.targets is not None else torch.zeros_like(own)

    def coming(self) -> Tensor:
        return _coming(self.items, self.before, self.targets)


def _coming(items: Tensor, before: Tensor, targets: Tensor) -> Tensor:
    """The event that came right after what each request sees, whether the request asks for it or not: (B, R) item ids, -1 unknown."""
    known = targets >= 0
    sequence = items.new_full((len(items), items.shape[1] + 2), -1)  # the last place takes what is not known
    sequence.scatter_(1, torch.where(known, before, items.shape[1] + 1), targets)
    sequence[:, -1] = -1
    inside = torch.arange(items.shape[1], device=items.device) < before.max(1, keepdim=True).values
    sequence[:, : items.shape[1]] = torch.where(inside, items, sequence[:, : items.shape[1]])
    return sequence.gather(1, before)


def _top(ids: Tensor, live: Tensor, score: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` live anchors of the highest score along the last axis: ids, live, features."""
    order = score.masked_fill(~live, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return (
        ids.gather(-1, order),
        live.gather(-1, order),
        features.gather(-2, order[..., None].expand(*order.shape, features.shape[-1])),
    )


def _belongs(items: Tensor, before: Tensor, targets: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ids (B, R, A) are among what each request has seen, and among all that is known of the person: two (B, R, A) bool.

    Context lanes behind a sequence's end hold item 0; no request sees them, and in training they lie behind every request's last event.
    """
    batch, length = items.shape
    place = torch.arange(length, device=items.device).expand(batch, -1)
    items = torch.where(place < before.max(1, keepdim=True).values, items, -1)
    if targets is not None:
        items, place = torch.cat([items, targets], 1), torch.cat([place, before], 1)
    keys, order = items.sort(dim=1, stable=True)
    found = torch.searchsorted(keys, ids.flatten(1)).clamp(max=keys.shape[1] - 1)
    own = keys.gather(1, found) == ids.flatten(1)
    first = place.gather(1, order.gather(1, found))
    own = own.view_as(ids)
    return own & (first.view_as(ids) < before[..., None]), own


class AnchorTokens(nn.Module):
    """Keys and values of anchors: the item's vector and what its counts say, projected once for all that attend over them."""

    def __init__(self, dim: int, heads: int, features: int):
        super().__init__()
        self.heads = heads
        self.item = nn.Linear(dim, 2 * dim, bias=False)
        self.counts = nn.Linear(features, 2 * dim, bias=False)

    def forward(self, anchors: Anchors, items: Tensor) -> tuple[Tensor, Tensor]:
        """items (n_items, dim) item vectors -> keys and values, each (B, R, A, heads, dim / heads)."""
        if anchors.ids.numel() > len(items):  # projecting the catalogue is less work than projecting its repeats
            tokens = F.embedding(anchors.ids, self.item(items))
        else:
            tokens = self.item(F.embedding(anchors.ids, items))
        return (tokens + self.counts(anchors.features)).unflatten(-1, (2, self.heads, -1)).unbind(-3)


class AnchorAttention(nn.Module):
    """Attention of request states over their anchors, with a learned bias from each anchor's counts; a null key is always visible."""

    def __init__(self, dim: int, heads: int, dropout: float, features: int):
        super().__init__()
        self.norm, self.query = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        self.bias = nn.Linear(features, heads)
        self.null = nn.Parameter(torch.zeros(2, heads, dim // heads))
        self.out = nn.Linear(dim, dim, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, anchors: Anchors, key: Tensor, value: Tensor) -> Tensor:
        """x (B, R, M, dim) states of each request's M tokens; key and value as ``AnchorTokens`` makes them -> what is added, x's shape."""
        query = (
            self.query(self.norm(x)).unflatten(-1, (key.shape[-2], -1)) * key.shape[-1] ** -0.5
        )  # (B, R, M, heads, dim / heads)
        logits = (
            torch.einsum("brmhd,brahd->brmha", query, key) + self.bias(anchors.features).transpose(2, 3)[:, :, None]
        )
        logits = logits.masked_fill(~anchors.live[:, :, None, None], -torch.inf)
        weights = torch.cat([(query * self.null[0]).sum(-1, keepdim=True), logits], dim=-1).softmax(-1)
        mixed = weights[..., :1] * self.null[1] + torch.einsum("brmha,brahd->brmhd", weights[..., 1:], value)
        return self.drop(self.out(mixed.flatten(3)))
