"""Query -> category: the request that finds an item should also find the kind of thing it is, before it knows which one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def category_cross_entropy(
    requests: Tensor, items: Tensor, targets: Tensor, categories: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of the targets' categories; a category's vector is the direction of its items' mean, so nothing new is learnt.

    ``requests`` (N, dim) unit vectors; ``items`` (n_items, dim) item vectors of any length; ``targets`` (N,) item ids; ``categories``
    (n_items,) codes from 0, -1 for an item without one. Targets without a category do not count; 0 where none has one.
    """
    wanted = categories[targets]
    live = wanted >= 0
    if not live.any():
        return requests.sum() * 0
    known = categories >= 0
    unit = F.normalize(items[known], dim=-1)
    table = unit.new_zeros(int(categories.max()) + 1, unit.shape[1]).index_add(0, categories[known], unit)
    return F.cross_entropy(requests[live] @ F.normalize(table, dim=-1).T / temperature, wanted[live])
