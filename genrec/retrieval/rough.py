"""A first look in bfloat16 that provably loses nothing: which items can still be among the k best by exact scores.

Processors that multiply bfloat16 do so at two to four times their float32 rate. How far a product of rounded vectors can be from the exact
one is known, so whatever scores lower than the k-th best by more than that can be left out; few remain for an exact look.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUP = 16  # items whose maximum is looked at first
UNIT = 2.0**-8  # largest rounding error of bfloat16 (8 significant bits), as a share of the value
SPARE = 1 + 2.0**-6  # sums in float32, and the bounds' own rounding, add far less than this share


class RoughScores:
    """Item vectors (n_items, dim) in bfloat16, and how far their products can be from the exact ones."""

    def __init__(self, vectors: Tensor):
        self.low = vectors.bfloat16()
        self.longest = float(self.low.float().norm(dim=1).max())
        self.rounded = float((vectors - self.low).norm(dim=1).max())

    def error(self, queries: Tensor) -> Tensor:
        """The largest error of a product with each of queries (B, dim), before it is rounded itself: (B,)."""
        left = (queries - queries.bfloat16()).norm(
            dim=1
        ) * self.longest  # Cauchy and Schwarz, for what rounding took from either side
        return (left + queries.norm(dim=1) * self.rounded) * SPARE + 1e-30

    def possible(self, queries: Tensor, k: int, hidden: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
        """Queries' rows and item ids (M,) of all that can be among the k best of queries (B, dim), rows ascending.

        ``hidden`` (B, n_items) bool leaves items out; ``block`` items are looked at at a time.
        """
        n_items, low, error, batch = len(self.low), queries.bfloat16(), self.error(queries), len(queries)
        ids, value = error.new_empty(batch, 0, dtype=torch.long), error.new_empty(batch, 0)
        floor = torch.full_like(error, -torch.inf)
        whole = low.new_empty(
            min(block, n_items), batch
        )  # one for all blocks: fresh pages would cost as much as the products
        for start in range(0, n_items, block):
            part = self.low[start : start + block]
            scores = torch.mm(part, low.T, out=whole if len(part) == len(whole) else None)
            if hidden is not None:
                scores.masked_fill_(hidden[:, start : start + block].T, -torch.inf)
            highest = group_maxima(scores, positive=True)
            if not start and len(highest) >= k:
                floor = lower(
                    kth_best(highest.T.float(), k), error
                )  # each is some item's: k items reach the k-th of them
            if not bool((floor > 0).all()):
                highest = group_maxima(scores, positive=False)
                if not start and len(highest) >= k:
                    floor = lower(kth_best(highest.T.float(), k), error)
            place, found = above(scores, floor, highest)
            ids, value = torch.cat([ids, place + start], dim=1), torch.cat([value, found], dim=1)
            if value.shape[1] >= k:
                floor = torch.maximum(floor, lower(kth_best(value, k), error))
        row, lane = torch.nonzero((value >= floor[:, None]) & value.isfinite(), as_tuple=True)
        return row, ids[row, lane]


def lower(kth: Tensor, error: Tensor) -> Tensor:
    """The least rough score that can belong to an exact one as high as that of the rough ``kth`` (B,)."""
    return kth - (2 * error + 2 * UNIT * kth.abs()) * SPARE


def group_maxima(scores: Tensor, positive: bool) -> Tensor:
    """The highest of each group of scores (N, B) in bfloat16: (N // GROUP, B). ``positive``: only those above zero need be right.

    The bits of positive numbers rise as the numbers do, and of integers of 16 bits the largest is found four times as fast.
    """
    bits = scores.view(torch.int16) if positive else scores
    return bits[: len(scores) // GROUP * GROUP].view(-1, GROUP, scores.shape[1]).amax(1).view(torch.bfloat16)


def kth_best(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of values (B, N), N >= k: (B,). numpy's selection is several times faster than torch's top-k."""
    place = values.shape[1] - k
    return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place].copy())


def above(scores: Tensor, floor: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values (B, M) of what is not below ``floor`` (B,) in scores (N, B), in no order, 0 and -inf behind it.

    Only groups whose maximum in ``highest`` (N // GROUP, B) is not below it are looked into.
    """
    batch = len(floor)
    least = (floor - UNIT * 2 * floor.abs()).to(scores.dtype)  # rounded, but not up
    group, row = torch.nonzero(highest >= least, as_tuple=True)  # in the order of memory: queries share its lines
    near = scores[: len(highest) * GROUP].view(-1, GROUP, batch)[group, :, row]
    pair, lane = torch.nonzero(near >= least[row, None], as_tuple=True)
    rest, rest_row = torch.nonzero(scores[len(highest) * GROUP :] >= least, as_tuple=True)
    rest += len(highest) * GROUP
    row, order = torch.cat([row[pair], rest_row]).sort(stable=True)
    place = torch.cat([group[pair] * GROUP + lane, rest])[order]
    value = torch.cat([near[pair, lane], scores[rest, rest_row]])[order]
    return ragged(row, batch, place, value.float())


def ragged(row: Tensor, batch: int, place: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """``place`` and ``value`` (n,) of ascending ``row`` (n,), one row of the batch beside the other: (batch, M), padded with 0 and -inf."""
    counts = torch.bincount(row, minlength=batch)
    slot = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    shape = (batch, int(counts.max()) if batch else 0)
    return place.new_zeros(shape).index_put((row, slot), place), value.new_full(shape, -torch.inf).index_put(
        (row, slot), value
    )
