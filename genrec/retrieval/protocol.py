"""The protocol of candidate retrievers.

A retriever gives the top items of requests, and scores of the items that other retrievers propose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from genrec.data.dataset import Requests
from genrec.retrieval.allowed import AllowedItems


@dataclass(frozen=True, eq=False)
class RetrievalRequests:
    """B requests as retrievers read them.

    Holds histories and query texts, the network's ``vectors`` (B, dim) for the dot product with items, and
    ``query_text`` (B, text_dim), the text vectors of the queries, zero without a query.

    Values that several retrievers need, or one for its top and its scores, are computed once and kept for one call.
    """

    requests: Requests
    vectors: Tensor
    query_text: Tensor
    _computed: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.requests)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, or its earlier result in this call."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]


class Retriever(Protocol):
    """A source of candidates. Apart from dense retrieval, none computes scores of the whole catalogue for a request."""

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """The best allowed items: ids (B, k) int64 and scores (B, k) float32, best first.

        Columns without an item hold -1 and -inf.
        """
        ...

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """Scores (B, K) float32 of item ids (B, K), rows rising."""
        ...
