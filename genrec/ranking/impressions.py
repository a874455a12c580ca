"""Ranks the items of an impression list, such as the hotels of a result page, by features of the items and of the list.

The position, the price relative to the list, and the position of recently viewed items are the strongest features of
session search (the best teams of the RecSys Challenge 2019 used them). All features precede the request: counts are of
events strictly before it, and so is the history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genrec.data.dataset import Dataset, Requests
from genrec.errors import UserError
from genrec.ranking.fitting import fit_network, fit_weights, list_loss

FEATURES = (
    "position",
    "first",
    "first_five",
    "relative_position",
    "price",
    "price_rank",
    "cheapest",
    "price_known",
    "looked",
    "looks",
    "clicks",
    "recency",
    "newest",
    "seconds",
    "behind_newest",
    "next_to_newest",
    "before_newest",
    "any_newest",
    "behind_clicked",
    "any_clicked",
    "price_to_newest",
    "history",
    "popular",
    "watched",
    "shown",
    "click_rate",
    "popular_rank",
)
_HIDDEN, _EPOCHS, _BATCH, _RATE = 64, 12, 128, 3e-3
_PRIOR_SHOWN = 20.0  # impressions that smooth the click rate
NOTHING = -30.0  # log-score of an item that the model cannot score


@dataclass(frozen=True)
class Slates:
    """N impression lists of up to C items.

    ``items`` (N, C): ids, -1 where empty; an id above the catalogue occurs only in lists. ``positions`` (N, C):
    from 0. ``prices`` (N, C): NaN where unknown.
    """

    items: np.ndarray
    positions: np.ndarray
    prices: np.ndarray

    def take(self, rows: np.ndarray) -> Slates:
        """The lists at indices ``rows``."""
        return Slates(self.items[rows], self.positions[rows], self.prices[rows])


class SlateFeatures:
    """Counts of the whole log by time, and the ``FEATURES`` they give an item in a list."""

    def __init__(self, dataset: Dataset, action: str = "clickout"):
        """``action``: the one that chooses an item of a list; all others are views."""
        self.action = dataset.actions_chain.index(action)
        times, items = np.asarray(dataset.timestamps), np.asarray(dataset.items).astype(np.int64)
        log = dataset.impressions_all
        assert log is not None
        self.origin, last = int(times.min()), int(times.max())
        self.span = max(last, int(log["timestamp"].to_numpy().max())) - self.origin + 1
        clicked = np.asarray(dataset.actions) == self.action
        self.clicks, self.looks = (self._keys(items[mask], times[mask]) for mask in (clicked, ~clicked))
        self.impressions = self._keys(log["item"].to_numpy(), log["timestamp"].to_numpy())

    def _keys(self, items: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.sort(items.astype(np.int64) * (self.span + 1) + np.clip(times - self.origin, 0, self.span))

    def before(self, keys: np.ndarray, items: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Entries of ``items`` (N, C) strictly before ``until`` (N,): (N, C)."""
        base = np.maximum(items, 0) * (self.span + 1)
        stop = np.clip(until - self.origin, 0, self.span)[:, None]
        return np.searchsorted(keys, base + stop) - np.searchsorted(keys, base)

    def features(self, requests: Requests, slates: Slates) -> np.ndarray:
        """Features (N, C, len(FEATURES)) float32 of the list items."""
        live = slates.items >= 0
        past = _past(requests, slates.items, self.action)
        size = np.maximum(live.sum(1, keepdims=True), 1)
        price, rank = _prices(slates.prices, live)
        newest, any_newest = _best(past["recency"])
        clicked, any_clicked = _best(past["recency"] * (past["clicks"] > 0))
        distance = slates.positions - np.take_along_axis(slates.positions, newest, 1)
        known = (any_newest & live).astype(np.float64)
        popular, watched, seen = (
            self.before(keys, slates.items, requests.times) for keys in (self.clicks, self.looks, self.impressions)
        )
        values = {
            "position": np.log1p(slates.positions),
            "first": slates.positions == 0,
            "first_five": slates.positions < 5,
            "relative_position": slates.positions / size,
            "price": price,
            "price_rank": rank / size,
            "cheapest": (rank == 0) & ~np.isnan(slates.prices),
            "price_known": ~np.isnan(slates.prices),
            "looked": past["looks"] > 0,
            "looks": np.log1p(past["looks"]),
            "clicks": np.log1p(past["clicks"]),
            "recency": past["recency"],
            "newest": past["recency"] == 1,
            "seconds": np.where(past["looks"] > 0, np.log1p(past["seconds"]), 0.0),
            "behind_newest": known * np.sign(distance) * np.log1p(np.abs(distance)),
            "next_to_newest": known * (distance == 1),
            "before_newest": known * (distance < 0),
            "any_newest": known,
            "behind_clicked": any_clicked
            * np.clip(slates.positions - np.take_along_axis(slates.positions, clicked, 1), -10, 10)
            / 10,
            "any_clicked": any_clicked & live,
            "price_to_newest": known * (price - np.take_along_axis(price, newest, 1)),
            "history": np.log1p(np.diff(requests.offsets))[:, None] + 0 * slates.positions,
            "popular": np.log1p(popular),
            "watched": np.log1p(watched),
            "shown": np.log1p(seen),
            "click_rate": np.log((popular + 1) / (seen + _PRIOR_SHOWN)),
            "popular_rank": _descending_rank(np.where(live, popular, -1)) / size,
        }
        stacked = np.stack([np.asarray(values[name], np.float32) for name in FEATURES], axis=-1)
        return stacked * live[..., None]


def _past(requests: Requests, items: np.ndarray, action: int) -> dict[str, np.ndarray]:
    """Events of each item (N, C) in its request's history.

    ``looks``: their number; ``clicks``: the chosen ones; ``recency``: 1 / (1 + age in events) of the newest;
    ``seconds``: its age.
    """
    rows, ages = requests.histories.rows.astype(np.int64), requests.histories.ages
    width = int(max(items.max(initial=0), requests.items.max(initial=0))) + 1
    keys = rows * width + requests.items.astype(np.int64)
    order = np.lexsort((-ages, keys))  # the newest event of an item comes last
    keys = keys[order]
    clicks = np.concatenate([[0], np.cumsum(requests.actions[order] == action)])
    item_keys = np.arange(len(items))[:, None] * width + np.maximum(items, 0)
    start, stop = np.searchsorted(keys, item_keys), np.searchsorted(keys, item_keys, side="right")
    known = (stop > start) & (items >= 0)
    if not len(keys):
        zero = np.zeros(items.shape)
        return {"looks": zero, "clicks": zero, "recency": zero, "seconds": zero}
    last = np.where(known, stop - 1, 0)
    seconds = np.maximum(requests.times[:, None] - requests.timestamps[order][last], 0)
    return {
        "looks": np.where(known, stop - start, 0),
        "clicks": np.where(known, clicks[stop] - clicks[start], 0),
        "recency": np.where(known, 1 / (1.0 + ages[order][last]), 0.0),
        "seconds": np.where(known, seconds, 0),
    }


def _best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The column (N, 1) of each row's highest score, and whether that is above 0: (N, 1)."""
    best = scores.argmax(1)[:, None]
    return best, np.take_along_axis(scores, best, 1) > 0


def _prices(prices: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log price minus the list's mean, 0 unknown; and the rank by price from 0, the cheapest first."""
    known = live & (prices > 0)
    logs = np.log(np.where(known, prices, 1.0))
    mean = (logs * known).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    return np.where(known, logs - mean, 0.0), _descending_rank(np.where(known, -logs, -np.inf))


def _descending_rank(scores: np.ndarray) -> np.ndarray:
    """How many columns of the row have a higher score: (N, C)."""
    ordered = np.sort(-scores, axis=1)
    return (
        np.stack([np.searchsorted(row, -own) for row, own in zip(ordered, scores, strict=True)])
        if len(scores)
        else scores.astype(np.int64)
    )


@dataclass
class SlateRanker:
    """List-wise softmax over a small network's scores; ``blend`` (2,) weighs them and the model's log-scores.

    The model's weight is 0 until ``fit_blend``.
    """

    mean: Tensor
    scale: Tensor
    network: nn.Sequential
    blend: Tensor

    @classmethod
    def fit(cls, features: np.ndarray, slates: Slates, targets: np.ndarray, seed: int = 0) -> SlateRanker:
        """Fit on ``features`` (N, C, F) of lists with ``targets`` (N,); lists without their target are skipped."""
        column, rows = _target_columns(slates.items, targets)
        if not len(rows):
            raise UserError("impression lists: no list contains the clicked item; nothing to fit")
        x, live = torch.from_numpy(features[rows]), torch.from_numpy(slates.items[rows] >= 0)
        seen = x[live]
        mean, scale = seen.mean(0), seen.std(0).clamp(min=1e-4)
        x = (x - mean) / scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            size = x.shape[-1]
            network = nn.Sequential(
                nn.Linear(size, _HIDDEN),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(_HIDDEN, _HIDDEN),
                nn.GELU(),
                nn.Linear(_HIDDEN, 1),
            )
            _train(network, x, live, torch.from_numpy(column))
        return cls(mean, scale, network.eval(), torch.tensor([1.0, 0.0]))

    @torch.no_grad()
    def own_scores(self, features: np.ndarray, slates: Slates) -> np.ndarray:
        """Log-probabilities (N, C) of the list items by this network alone, -inf where empty."""
        scores = self.network((torch.from_numpy(features) - self.mean) / self.scale)[..., 0]
        return scores.masked_fill(torch.from_numpy(slates.items < 0), -torch.inf).log_softmax(-1).numpy()

    def fit_blend(self, own: np.ndarray, model: np.ndarray, slates: Slates, targets: np.ndarray) -> None:
        """Fit the weights of ``own`` and of the model's log-scores, (N, C) each, on lists not used to fit either."""
        column, rows = _target_columns(slates.items, targets)
        if not len(rows):
            return
        live = torch.from_numpy(slates.items[rows] >= 0)
        x = torch.stack(
            [
                torch.from_numpy(np.where(slates.items[rows] >= 0, part[rows], 0.0)).float()
                for part in (own, _centred(model, slates.items))
            ],
            -1,
        )
        chosen = torch.from_numpy(column)
        self.blend = fit_weights(self.blend, lambda weights: list_loss(x @ weights, live, chosen))

    def scores(self, own: np.ndarray, model: np.ndarray, slates: Slates) -> np.ndarray:
        """Blended scores (N, C); higher is better."""
        a, b = self.blend.tolist()
        return np.where(
            slates.items >= 0, a * np.where(slates.items >= 0, own, 0) + b * _centred(model, slates.items), -np.inf
        )


def _centred(model: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The model's log-scores minus their mean over the scored items of the list; 0 for other items."""
    known = (items >= 0) & (model > NOTHING)
    values = np.where(known, model, 0.0)
    mean = values.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    return np.where(known, values - mean, 0.0)


def _target_columns(items: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The target's column in the lists that contain it, and those lists' rows."""
    hit = items == np.asarray(targets)[:, None]
    rows = np.flatnonzero(hit.any(1))
    return hit[rows].argmax(1), rows


def _train(network: nn.Sequential, x: Tensor, live: Tensor, column: Tensor) -> None:
    def loss(rows: Tensor) -> Tensor:
        return list_loss(network(x[rows])[..., 0], live[rows], column[rows])

    fit_network(list(network.train().parameters()), loss, torch.arange(len(x)), _RATE, _EPOCHS, _BATCH)
