"""The true value of a list in the simulated world: expected clicks and purchases, from the latent truth.

This closes the loop for policies: no log needs impressions of the list. A policy does not know the user's running
session, so the value is the mean over the possibilities: the session of the last click continues, or a new one begins
with an intent of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec.data.simulator.sessions import BIAS, INTENT, RESEMBLANCE, TASTE, attention
from genrec.data.simulator.simulate import SAME_SESSION
from genrec.data.simulator.world import FOLLOW, STAY, World

_CHUNK = 4096


@dataclass(frozen=True)
class ListValue:
    """Expected ``clicks`` and ``purchases`` of each list, (N,)."""

    clicks: np.ndarray
    purchases: np.ndarray


def list_value(world: World, users: np.ndarray, when: np.ndarray, previous: np.ndarray, lists: np.ndarray) -> ListValue:
    """Value of feed lists (N, K) of item numbers, -1 where empty.

    They are shown to ``users`` (N,) at ``when`` (N,) in [0, 1] of the log; ``previous`` (N,) is each user's last click,
    -1 for none. Chances are those of ``simulator.sessions``: attention falls with the position, a click depends on
    taste, resemblance to the last click and the session's category; purchases follow clicks, more of them where the
    item is liked more.
    """
    parts = [
        _value(world, users[part], when[part], previous[part], lists[part])
        for part in np.split(np.arange(len(users)), range(_CHUNK, len(users), _CHUNK))
    ]
    return ListValue(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _value(
    world: World, users: np.ndarray, when: np.ndarray, previous: np.ndarray, lists: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    live, item = lists >= 0, np.maximum(lists, 0)
    known, last = previous >= 0, np.maximum(previous, 0)
    taste = world.taste(users, when)
    fresh = world.leaf_chances(taste)  # (row, leaf) of a session that habit does not decide
    rows, before = np.arange(len(users)), world.item_leaf[last]
    later = np.where(known[:, None], 1 - STAY - FOLLOW, 1.0) * fresh
    later[rows, before] += STAY * known
    later[rows, world.leaf_next[before]] += FOLLOW * known
    vectors, leaf = world.item_vectors[item], world.item_leaf[item]
    liked = BIAS + TASTE * np.einsum("nd,nkd->nk", taste, vectors)
    running = (
        liked
        + RESEMBLANCE * np.einsum("nd,nkd->nk", world.item_vectors[last], vectors)
        + INTENT * (leaf == before[:, None])
    )
    meets = np.take_along_axis(later, leaf, 1)  # the new session is about the item's category
    same = (SAME_SESSION * known)[:, None]
    weight = live * attention(lists.shape[1])
    totals = []
    for outcome in (_click, purchase_chance):
        new = meets * outcome(liked + INTENT) + (1 - meets) * outcome(liked)
        totals.append((weight * (same * outcome(running) + (1 - same) * new)).sum(1))
    return totals[0], totals[1]


def _click(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def purchase_chance(logit: np.ndarray) -> np.ndarray:
    """Click, then cart (a tenth, and up to four tenths more), then purchase (half)."""
    click = _click(logit)
    return click * (0.1 + 0.4 * click) * 0.5
