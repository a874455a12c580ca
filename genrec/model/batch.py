"""Batches of padded sequences and requests: what the network reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from genrec.model.device import to_device


@dataclass
class BatchImpressions:
    """N requests of a batch that the log itself answered, at ``row`` and ``column`` (N,).

    With up to C items in each slate.

    ``items`` (N, C), -1 for padding; ``reached`` (N, C, stages) bool which stages the user reached with them;
    ``features`` (N, C, F) float32.
    """

    row: Tensor
    column: Tensor
    items: Tensor
    reached: Tensor
    features: Tensor

    def to(self, device: torch.device) -> BatchImpressions:
        """A copy on ``device``."""
        return BatchImpressions(**{f.name: to_device(getattr(self, f.name), device) for f in fields(self)})

    def pin_memory(self) -> BatchImpressions:
        """A copy in pinned memory."""
        return BatchImpressions(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


@dataclass
class Batch:
    """B sequences of up to T events with up to R requests each. Contexts are padded on the right.

    ``items``, ``actions`` and ``queries`` (B, T) int64; ``times`` (B, T) float64 buckets since the sequence's origin;
    ``positions`` (B, R) events visible to each request; ``request_times``, ``request_queries`` and ``targets`` (B,
    R), targets -1 for padding or unknown. Queries index the batch's own table, 0 for none: ``query_text`` (Q,
    text_dim), ``query_words`` (n,) with ``query_offsets`` (Q,), and where they were looked up before, the items
    that each query names: ``named_items`` (Q, W) ids with ``similarity`` and ``word_match`` (Q, W). With
    ``model.summary_tokens`` also the events before each context: ``older_items`` and ``older_actions`` (n,), those of
    a sequence from ``older_offsets`` (B,) on. In training also ``later_items`` (B, L), -1 for padding, the users' next
    events after the window, which are counted in the anchors' tables; with ``model.stages`` also ``reached`` (B, R,
    stages) bool, which stages the user reached with each target, and ``impressions``. ``situation`` (B, R, F): rows of
    the fields of ``model.situation``, 0 for unknown ones.

    ``host`` is the batch on the CPU that this one was copied from: sizes and indices are computed there, so that
    nothing waits for the device.
    """

    items: Tensor
    actions: Tensor
    queries: Tensor
    times: Tensor
    positions: Tensor
    request_times: Tensor
    request_queries: Tensor
    targets: Tensor
    query_text: Tensor
    query_words: Tensor
    query_offsets: Tensor
    named_items: Tensor | None = None
    similarity: Tensor | None = None
    word_match: Tensor | None = None
    older_items: Tensor | None = None
    older_actions: Tensor | None = None
    older_offsets: Tensor | None = None
    later_items: Tensor | None = None
    reached: Tensor | None = None
    impressions: BatchImpressions | None = None
    situation: Tensor | None = None
    host: Batch | None = None

    def _each(self, change: Callable) -> dict:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "host"}
        return {name: None if value is None else change(value) for name, value in values.items()}

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``; the batch itself where it is there already."""
        device = torch.device(device)
        if device.type == self.items.device.type == "cpu":
            return self

        def move(value: Tensor | BatchImpressions) -> Tensor | BatchImpressions:
            return value.to(device) if isinstance(value, BatchImpressions) else to_device(value, device)

        return Batch(**self._each(move), host=self.on_host)

    def pin_memory(self) -> Batch:
        """A copy in pinned memory, which a DataLoader makes so that copies to the device overlap with computation."""
        return Batch(**self._each(lambda value: value.pin_memory()))

    @property
    def on_host(self) -> Batch:
        """This batch on the CPU."""
        return self if self.host is None else self.host

    def where(self, mask: Callable[[Batch], Tensor]) -> tuple[Tensor, ...]:
        """Indices (N,) per dimension where a mask of the batch is true, in row-major order, on the batch's device."""
        indices = mask(self.on_host).nonzero(as_tuple=True)
        return tuple(to_device(index, self.items.device) for index in indices)

    def slots(self, searches: bool = False) -> Tensor | None:
        """Which of the B x R request slots hold a request: indices (N,), rising; None where there is one a sequence.

        ``searches``: only requests with a query.
        """
        if self.positions.shape[1] == 1:
            return None
        host = self.on_host
        if searches:
            return to_device((host.request_queries > 0).flatten().nonzero()[:, 0], self.items.device)
        exists = (host.targets >= 0) | (host.positions > 0) | (host.request_queries > 0)
        if host.impressions is not None:
            exists[host.impressions.row, host.impressions.column] = True
        return to_device(exists.flatten().nonzero()[:, 0], self.items.device)
