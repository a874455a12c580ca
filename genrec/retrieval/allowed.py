"""Which items a request may be answered with, in memory that does not grow with the catalogue per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).max  # padding of a row of ids: rows stay sorted


@dataclass(frozen=True, eq=False)
class AllowedItems:
    """The allowed results of N requests: items of ``mask`` and ``only`` that are not ``excluded``.

    None does not restrict. ``mask`` (n_items,) bool applies to all requests, such as a category or the items in stock.
    ``only`` and ``excluded`` (N, W) int64 list the ids of each request, ascending, padded with ``EMPTY``; see
    ``id_rows``.
    """

    mask: Tensor | None = None
    excluded: Tensor | None = None
    only: Tensor | None = None

    def take(self, rows: np.ndarray | Tensor) -> AllowedItems:
        """The same for some of the requests."""
        index = torch.as_tensor(rows)
        excluded, only = (None if part is None else part[index.to(part.device)] for part in (self.excluded, self.only))
        return replace(self, excluded=excluded, only=only)

    def to(self, device: torch.device | str) -> AllowedItems:
        """The same with every tensor on ``device``."""
        parts = (None if part is None else part.to(device) for part in (self.mask, self.excluded, self.only))
        return AllowedItems(*parts)

    def without(self, ids: Tensor) -> AllowedItems:
        """Also exclude ``ids`` (N, W), rows as ``id_rows`` makes them."""
        both = (
            ids if self.excluded is None else torch.cat([self.excluded, ids.to(self.excluded.device)], 1).sort(1).values
        )
        return replace(self, excluded=both)

    def keep(self, ids: Tensor) -> Tensor:
        """Whether item ids (N, K) are allowed: (N, K) bool. An id of -1, an empty position, is not."""
        kept = ids >= 0
        if self.mask is not None:
            kept &= self.mask[ids.clamp(min=0)]
        if self.excluded is not None:
            kept &= ~contains(self.excluded, ids)
        if self.only is not None:
            kept &= contains(self.only, ids)
        return kept

    def hidden(self, n: int, n_items: int) -> Tensor | None:
        """The mask (n, n_items) bool of items that are not allowed, None where all are.

        Sources that score the whole catalogue use it.
        """
        if self.mask is None and self.excluded is None and self.only is None:
            return None
        allowed = (
            torch.ones(n, n_items + 1, dtype=torch.bool)
            if self.only is None
            else torch.zeros(n, n_items + 1, dtype=torch.bool)
        )
        for ids, value in ((self.only, True), (self.excluded, False)):
            if ids is not None:
                allowed.scatter_(1, ids.cpu().clamp(max=n_items), value)
        allowed = allowed[:, :n_items]
        return ~(allowed if self.mask is None else allowed & self.mask.cpu())

    @cached_property
    def candidates(self) -> Tensor:
        """The allowed ids of ``only``: (N, W), -1 for the others. For requests that name their candidates."""
        assert self.only is not None
        ids = self.only.masked_fill(self.only == EMPTY, -1)
        return ids.masked_fill(~self.keep(ids), -1)


def contains(rows: Tensor, ids: Tensor) -> Tensor:
    """Whether each of ids (N, K) is in its row of sorted ``rows`` (N, W): (N, K) bool."""
    if not rows.shape[1]:
        return torch.zeros_like(ids, dtype=torch.bool)
    index = torch.searchsorted(rows, ids.contiguous()).clamp_(max=rows.shape[1] - 1)
    return rows.gather(1, index) == ids


def id_rows(offsets: np.ndarray, ids: np.ndarray) -> Tensor:
    """Sorted rows (N, W), padded with ``EMPTY``, of ragged ids.

    ``ids[offsets[r]:offsets[r + 1]]`` are the ids of request r.
    """
    lengths = np.diff(offsets)
    rows = np.full((len(lengths), int(lengths.max(initial=0))), EMPTY, np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids
    return torch.from_numpy(np.sort(rows, axis=1))


def id_lists(lists: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """``id_rows`` of one list of ids per request."""
    arrays = [np.asarray(part, np.int64).reshape(-1) for part in lists]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in arrays])]).astype(np.int64)
    return id_rows(offsets, np.concatenate(arrays) if arrays else np.zeros(0, np.int64))
