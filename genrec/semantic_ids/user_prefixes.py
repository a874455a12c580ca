"""User IDs and pooled histories for every request of a batch at once.

Many requests of one sequence cost little more than its last.

A request sees the events of its sequence before it, a prefix. The weights of ``user_ids.recency_weights`` grow from the
oldest event on, so those of all prefixes are one running sum divided by another; only views that leave out the oldest
events are summed one by one. Source: OneSearch (arXiv 2509.03236), as in ``user_ids``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.semantic_ids.user_ids import LONG, NO_CODE, ROUNDING, SHORT, behaviour_codes


def ranges(items: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Histories:
    """Histories of ``items[start[r]:stop[r]]``: start, stop (n,) into items (n_events,), oldest first.

    Ranges may overlap.
    """
    start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
    if start.shape != stop.shape or (
        len(start) and not (start.min() >= 0 and (start <= stop).all() and stop.max() <= len(items))
    ):
        raise UserError(
            f"ranges of {len(items)} events: start {start.shape} and stop {stop.shape} must rise within 0 to "
            f"{len(items)}"
        )
    length = stop - start
    offsets = np.concatenate([[0], np.cumsum(length)])
    return Histories(offsets, np.asarray(items)[np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1])])


def prefix_user_codes(
    codes: np.ndarray, items: np.ndarray, start: np.ndarray, stop: np.ndarray, short: int = SHORT, long: int = LONG
) -> np.ndarray:
    """``user_codes`` of the events ``items[start[r]:stop[r]]`` that request r sees.

    Returns (n, 2 L) int64, -1 for a request without events.

    ``codes`` (n_items, L); ``items`` (n_events,) flat, such as a batch's windows; start, stop (n,). No event from
    ``stop`` on is read.
    """
    if short < 1 or long < 1:
        raise UserError(f"prefix_user_codes got short={short}, long={long}; expected 1 or more events")
    start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
    near = behaviour_codes(codes, ranges(items, np.maximum(start, stop - short), stop))
    far = np.empty_like(near)
    cut = stop - start > long
    far[cut] = behaviour_codes(codes, ranges(items, stop[cut] - long, stop[cut]))
    far[~cut] = _running_codes(codes, items, start[~cut], stop[~cut])
    return np.concatenate([near, far], axis=1)


def _running_codes(codes: np.ndarray, items: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """``behaviour_codes`` of ranges, by running sums over each distinct start's longest range: (n, L) int64."""
    result = np.full((len(start), codes.shape[1]), NO_CODE, np.int64)
    if not len(start) or not (stop > start).any():
        return result
    first, sequence = np.unique(start, return_inverse=True)
    width = int((stop - start).max())
    event = np.minimum(
        first[:, None] + np.arange(width), len(items) - 1
    )  # those behind a range's end are summed but not looked at
    seen = np.asarray(items)[event]
    weight = np.exp(np.sqrt(np.arange(1, width + 1)) - np.sqrt(width))
    total, sums = (
        np.cumsum(weight),
        np.cumsum(weight[None, :, None] * codes[seen], axis=1),
    )  # (width,), (sequences, width, L)
    live = np.flatnonzero(stop > start)
    last = (stop - start)[live] - 1
    result[live] = np.ceil(sums[sequence[live], last] / total[last][:, None] - ROUNDING).astype(np.int64)
    return result


def prefix_sums(vectors: Tensor, positions: Tensor) -> Tensor:
    """Sums of the first ``positions`` (B, R) of each sequence's vectors (B, T, d): (B, R, d), zero for no event.

    With an event's centroid (projected to the network's width) as its vector, zero where its behaviour is another one,
    these are OneSearch's pooled long histories of that level and behaviour, at every request.
    """
    return F.pad(vectors.cumsum(1), (0, 0, 1, 0)).gather(1, _spread(positions, vectors))


def recency_pool(vectors: Tensor, positions: Tensor, last: int) -> Tensor:
    """``sum_i lambda_i v_i`` over the newest ``last`` of the first ``positions`` (B, R) vectors (B, T, d).

    Returns (B, R, d), zero without events.

    The weights are ``recency_weights``' of that view. With the sum of an item's code vectors as v this is the user ID
    as a vector that learns: ``code_weights`` times the code vectors, summed over levels.
    """
    length = vectors.shape[1]
    root = torch.arange(1, length + 1, device=vectors.device).sqrt()
    if last >= length:
        weight = (root - root[-1]).exp()  # at most 1, whatever the length
        total = F.pad(weight.cumsum(0), (1, 0), value=1.0)[positions]
        return prefix_sums(vectors * weight[:, None], positions) / total[..., None]
    position = torch.arange(last, device=vectors.device)
    seen = positions.clamp(max=last)[..., None]
    event = (positions[..., None] - seen + position).clamp(
        min=0, max=length - 1
    )  # (B, R, last), the view's oldest first
    weight = root[:last].masked_fill(position >= seen, -torch.inf)
    weight = torch.where(seen > 0, weight, 0.0).softmax(-1) * (seen > 0)
    rows = torch.arange(len(vectors), device=vectors.device)[:, None, None]
    return (weight.to(vectors.dtype)[..., None] * vectors[rows, event]).sum(2)


def _spread(positions: Tensor, vectors: Tensor) -> Tensor:
    return positions[..., None].expand(-1, -1, vectors.shape[2])
