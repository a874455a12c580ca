"""The options of one search call, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from genrec.config.schema import DecodingConfig
from genrec.retrieval.allowed import AllowedItems

MODES = ("fused", "retrieve", "generate", "rank")


@dataclass(frozen=True)
class SearchOptions:
    """Requests a list of ``k`` items per request in each of ``modes``.

    ``exclude_seen`` excludes the items of the request's own history. ``beam`` and ``dense`` are the widths of beam
    search and dense retrieval, None for those of the config; see ``widths``. ``allowed`` restricts the items, one row
    per request.
    """

    k: int = 10
    modes: tuple[str, ...] = ("fused",)
    exclude_seen: bool = True
    beam: int | None = None
    dense: int | None = None
    allowed: AllowedItems = field(default_factory=AllowedItems)

    @property
    def fuses(self) -> bool:
        """Whether a mode orders the union of all sources."""
        return "fused" in self.modes or "rank" in self.modes

    def widths(self, settings: DecodingConfig) -> tuple[int, int]:
        """Beam and dense width: at least the length of the list, and of the requests' own candidate lists."""
        minimum = 0 if self.allowed.only is None else self.allowed.only.shape[1]
        generates = self.modes == ("generate",)
        beam = self.beam or max(settings.beam, self.k if generates else 0)
        dense = self.dense or max(settings.dense, 0 if generates else self.k)
        return max(beam, minimum), max(dense, minimum)

    def take(self, rows: np.ndarray) -> SearchOptions:
        """The same for some of the requests."""
        return replace(self, allowed=self.allowed.take(rows))
