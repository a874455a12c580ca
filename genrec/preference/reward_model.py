"""The reward model: what a user would do with an impression.

Three towers over one hidden layer, fitted on impressions.

The towers are click (among impressions), next stage (among clicks), and both: the deep stage among impressions. The
reward joins them with the relevance of the item's text for the query (OneSearch's three-tower SIM, arXiv 2509.03236).
Inputs come from ``RewardFeatures``: vectors of the frozen network, and features counted on events *before* the requests
that the model is fitted on. The requests it values are later still.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.data.dataset import TRAIN, Dataset, Requests
from genrec.data.histories import Histories
from genrec.data.rates import FeedbackRates, n_features
from genrec.errors import UserError
from genrec.model.batch import Batch
from genrec.model.network import GenerativeRecommender
from genrec.model.taste import Taste
from genrec.ranking.features import (
    HISTORY_FEATURES,
    ITEM_FEATURES,
    CandidateFeatures,
    log_scores,
    to_tensor,
)
from genrec.ranking.item_facts import ItemFacts
from genrec.retrieval.cooccurrence import CooccurrenceTransition

log = logging.getLogger(__name__)
TOWERS = ("click", "next", "both")
NAMES = ("cooccurrence", "cooccurs", "transition", "transits", "relevance", *ITEM_FEATURES, *HISTORY_FEATURES)
_HIDDEN, _CLIP = 64, 6.0


def features_before(data: Dataset, text: np.ndarray, time: int) -> CandidateFeatures:
    """Candidate features counted on training events before ``time`` (seconds) alone."""
    known = (np.asarray(data.split) == TRAIN) & (np.asarray(data.timestamps) < time)
    counted = np.concatenate([[0], np.cumsum(known)])
    items, times = np.asarray(data.items)[known].astype(np.int64), np.asarray(data.timestamps)[known].astype(np.int64)
    table = CooccurrenceTransition().fit(Histories(counted[np.asarray(data.offsets)], items), data.n_items)
    origin = int(times.min()) if len(times) else 0
    span = int(times.max()) - origin if len(times) else 0
    return CandidateFeatures(
        table, ItemFacts.from_table(data.item_table, text), np.sort(items * (span + 1) + (times - origin)), origin, span
    )


class RewardFeatures:
    """Features (B, K, ``width``) of candidates of requests.

    They are candidate features, the item's vector, the request state and their product, the retrieval score, feedback
    rates, and the log-odds of ``taste``. The request state was trained to name what followed in the very training
    requests, so it knows more on those than on later ones; the quality on validation says whether it pays.
    """

    def __init__(
        self,
        network: GenerativeRecommender,
        counted: CandidateFeatures,
        taste: Taste,
        rates: FeedbackRates | None = None,
    ):
        """``rates``: feedback on earlier impressions, by item, user, brand, ...; None for a log without impressions."""
        self.network, self.counted, self.taste, self.rates = network, counted, taste, rates
        with torch.inference_mode():
            items = network.item_encoder()
            self.items, self.index = F.normalize(items, dim=-1).clone(), network.item_index(items).clone()
            self.text = network.catalogue.text.to(self.items.device)

    @property
    def width(self) -> int:
        """Number of features."""
        rates = n_features(self.rates.stages) if self.rates is not None else 0
        return len(NAMES) + 3 * self.items.shape[1] + rates + 2

    @torch.no_grad()
    def __call__(self, requests: Requests, users: np.ndarray, batch: Batch, ids: Tensor, state: Tensor) -> Tensor:
        """Features of items ``ids`` (B, K), -1 anywhere.

        ``users`` (B,) of the requests, ``batch`` their collated form, ``state`` (B, dim) their request states.
        """
        columns, device = ids.clamp(min=0), ids.device
        items, until = columns.cpu().numpy(), requests.reference_times(self.network.config.request_time)
        similar, following = (
            torch.from_numpy(scores).to(device) for scores in self.counted.cooccurrence.score_parts(requests.histories)
        )
        pairs = [part for scores in (similar, following) for part in log_scores(scores.gather(1, columns))]
        counts = to_tensor(
            [*self.counted.item_features(items, until), *self.counted.history_features(items, requests.histories)],
            device,
        )
        counts = torch.cat([torch.stack([*pairs, self.relevance(batch, columns)], -1), counts], -1)
        own = self.items[columns]
        person = F.normalize(state, dim=-1)[:, None].expand_as(own)
        retrieval = (self.network.retrieval_vectors(state)[:, None] * self.index[columns]).sum(-1, keepdim=True)
        taste = self.taste(self.text, requests, ids)[..., None]
        parts = [counts.float(), own, person, own * person * own.shape[-1] ** 0.5, retrieval, taste]
        if self.rates is not None:
            parts.append(self.impressions_before(requests, users, ids))
        return torch.cat(parts, dim=-1)

    def impressions_before(self, requests: Requests, users: np.ndarray, ids: Tensor) -> Tensor:
        """Feedback rates of items (B, K) from impressions before each request: (B, K, n_features)."""
        assert self.rates is not None
        columns = ids.clamp(min=0).cpu().numpy()
        times = requests.reference_times(self.network.config.request_time)
        users, times = (np.repeat(values, columns.shape[1]) for values in (users, times))
        rates = self.rates.features(users, columns.ravel(), np.full(columns.size, -1), times)
        return torch.from_numpy(rates).to(ids.device).view(*columns.shape, -1)

    def relevance(self, batch: Batch, ids: Tensor) -> Tensor:
        """Cosine of the query's and the items' text vectors (B, K); 0 without a query."""
        table = torch.cat([batch.query_text.new_zeros(1, self.text.shape[1]), batch.query_text])
        return (table[batch.request_queries[:, 0]][:, None] * self.text[ids].float()).sum(-1)


@dataclass
class RewardPrediction:
    """Chances (B, K) of the three towers, and text ``relevance`` (B, K)."""

    click: Tensor
    next: Tensor
    both: Tensor
    relevance: Tensor


class RewardModel(nn.Module):
    """See the module.

    ``base`` (3,) holds the mean of each tower's target, which puts rewards of rare stages on one scale.
    """

    mean: Tensor
    scale: Tensor
    base: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("base", torch.ones(len(TOWERS)))
        self.bottom = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Dropout(0.1))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(_HIDDEN, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in TOWERS)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., width) to logits (..., 3)."""
        x = self.bottom(((features - self.mean) / self.scale).clamp(-_CLIP, _CLIP))
        return torch.cat([tower(x) for tower in self.towers], dim=-1)

    @torch.no_grad()
    def predict(self, features: Tensor) -> RewardPrediction:
        """The chances of every row."""
        click, following, both = self(features).sigmoid().unbind(-1)
        return RewardPrediction(click, following, both, features[..., NAMES.index("relevance")])

    def reward(self, predicted: RewardPrediction, weights: Mapping[str, float]) -> Tensor:
        """``sum weight x chance / mean chance`` over the towers, plus ``relevance`` x 10 (as in the paper): (B, K)."""
        total = 10 * weights.get("relevance", 0.0) * predicted.relevance
        for tower, name in enumerate(TOWERS):
            total = total + weights.get(name, 0.0) * getattr(predicted, name) / self.base[tower].clamp(min=1e-6)
        return total


@dataclass
class RewardData:
    """Impressions: ``features`` (M, width), ``stages`` (M,), ``request`` (M,) the index of the request in time."""

    features: Tensor
    stages: Tensor
    request: Tensor

    @classmethod
    def join(cls, parts: Iterator[tuple[Tensor, Tensor, Tensor]]) -> RewardData:
        """From padded parts: features (B, K, width), stages (B, K) -2 where empty, requests (B,)."""
        kept = []
        for features, stages, request in parts:
            live = stages > -2
            kept.append((features[live], stages[live], request[:, None].expand_as(stages)[live]))
        return cls(*(torch.cat(part) for part in zip(*kept, strict=True)))


def losses(logits: Tensor, stages: Tensor, click: int, order: int) -> Tensor:
    """Binary cross-entropies of the three towers, (3,); the next stage counts over clicked rows only."""
    clicked, ordered = (stages >= click).float(), (stages >= order).float()
    following = F.binary_cross_entropy_with_logits(logits[:, 1], ordered, reduction="none")
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(logits[:, 0], clicked),
            (following * clicked).sum() / clicked.sum().clamp(min=1),
            F.binary_cross_entropy_with_logits(logits[:, 2], ordered),
        ]
    )


def fit_reward_model(
    data: RewardData, click: int, order: int, seed: int, epochs: int = 12, batch: int = 1024, patience: int = 2
) -> RewardModel:
    """Fit on the earlier nine tenths of the requests; the last tenth decides when to stop.

    ``click`` and ``order`` index the stages. Raises ``UserError`` where nothing was clicked.
    """
    if not bool((data.stages >= click).any()):
        raise UserError("preference: no impression before the policy's requests was clicked; the log is too short")
    cut = data.request.float().quantile(0.9) if len(data.request) < 1 << 24 else data.request.max() * 0.9
    held = data.request > cut
    train = torch.nonzero(~held)[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(data, train, click, order)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
        best, kept, worse = float("inf"), model.state_dict(), 0
        for epoch in range(epochs):
            model.train()
            for rows in train[torch.randperm(len(train))].split(batch):
                optimizer.zero_grad()
                losses(model(data.features[rows]), data.stages[rows], click, order).sum().backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                held_losses = losses(model(data.features[held]), data.stages[held], click, order)
            loss = float(held_losses.sum()) if held.any() else -epoch
            if loss < best:
                best, kept, worse = loss, {name: value.clone() for name, value in model.state_dict().items()}, 0
            elif (worse := worse + 1) >= patience:
                break
        model.load_state_dict(kept)
    return model.eval()


def _new_model(data: RewardData, train: Tensor, click: int, order: int) -> RewardModel:
    """A model with the scales and base rates of the rows ``train`` (n,)."""
    model = RewardModel(data.features.shape[1])
    features = data.features[train]
    spread = features.std(0)
    model.mean.copy_(features.mean(0))
    model.scale.copy_(torch.where(spread > 1e-5, spread, torch.inf))
    clicked, ordered = data.stages[train] >= click, data.stages[train] >= order
    rates = [clicked.float().mean(), ordered[clicked].float().mean().nan_to_num(0), ordered.float().mean()]
    model.base.copy_(torch.stack(rates))
    return model


def calibration(chance: np.ndarray, happened: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Rows of the calibration curve: bins of equally many predictions, their mean and the observed fraction."""
    order = np.argsort(chance, kind="stable")
    return [
        {"predicted": float(chance[rows].mean()), "observed": float(happened[rows].mean()), "rows": int(len(rows))}
        for rows in np.array_split(order, bins)
        if len(rows)
    ]


def expected_calibration_error(curve: list[dict[str, float]]) -> float:
    """Mean distance of predicted and observed fractions, weighted by rows."""
    total = sum(row["rows"] for row in curve)
    return sum(abs(row["predicted"] - row["observed"]) * row["rows"] for row in curve) / max(total, 1)
