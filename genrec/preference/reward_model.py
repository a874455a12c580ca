"""The reward model: what a person would do with an item if it was shown. Three towers over one hidden layer, trained on what was shown.

Towers: click (of what is shown), next stage (of what is clicked), and both, the deep stage among all that is shown; the reward joins them with
the relevance of the item's text for the query (OneSearch's three-tower SIM, arXiv 2509.03236). Inputs come from ``RewardFeatures``: vectors of
the frozen network and evidence counted on events *before* the requests that the model is fitted on; requests it judges come later still.
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
from genrec.ranking.features import (
    DECAY,
    HISTORY_FEATURES,
    ITEM_FEATURES,
    CandidateFeatures,
    ItemFacts,
    log_scores,
    to_tensor,
)
from genrec.retrieval.cooccurrence import CooccurrenceTransition

log = logging.getLogger(__name__)
TOWERS = ("click", "next", "both")
NAMES = ("cooccurrence", "cooccurs", "transition", "transits", "relevance", *ITEM_FEATURES, *HISTORY_FEATURES)
_HIDDEN, _CLIP = 64, 6.0


def evidence_before(data: Dataset, text: np.ndarray, time: int) -> CandidateFeatures:
    """CandidateFeatures counted on training events before ``time`` alone."""
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
    """Features (B, K, ``width``) of candidates of requests: evidence, and the item's, the history's and their joint vector.

    ``request_state``: the backbone's request state stands for the history, and its retrieval score of the candidate comes with it. They were
    trained to name what followed in the very training requests, so on those they know more than later; validation says whether it pays. Else
    the decayed mean of the history's item vectors.
    """

    def __init__(
        self,
        network: GenerativeRecommender,
        evidence: CandidateFeatures,
        rates: FeedbackRates | None = None,
        request_state: bool = False,
    ):
        """``rates``: what became of items shown earlier, by item, person, brand, ...; None for a log without impressions."""
        self.network, self.evidence, self.rates, self.request_state = network, evidence, rates, request_state
        with torch.inference_mode():
            items = network.item_encoder()
            self.items, self.index = F.normalize(items, dim=-1).clone(), network.item_index(items).clone()
            self.text = network.catalogue.text.to(self.items.device)

    @property
    def width(self) -> int:
        rates = n_features(self.rates.stages) if self.rates is not None else 0
        return len(NAMES) + 3 * self.items.shape[1] + rates + self.request_state

    @torch.no_grad()
    def __call__(self, requests: Requests, users: np.ndarray, batch: Batch, ids: Tensor, state: Tensor) -> Tensor:
        """``users`` (B,) of the requests, ``batch`` what they became, ``state`` (B, dim) their request states; ids (B, K), -1 anywhere."""
        place, device = ids.clamp(min=0), ids.device
        columns, until = place.cpu().numpy(), requests.reference_times(self.network.config.request_time)
        similar, following = (
            torch.from_numpy(part).to(device) for part in self.evidence.cooccurrence.score_parts(requests.histories)
        )
        pairs = [part for scores in (similar, following) for part in log_scores(scores.gather(1, place))]
        known = to_tensor(
            [
                *self.evidence.item_features(columns, until),
                *self.evidence.history_features(columns, requests.histories),
            ],
            device,
        )
        counted = torch.cat([torch.stack([*pairs, self.relevance(batch, place)], -1), known], -1)
        own = self.items[place]
        person = F.normalize(state, dim=-1) if self.request_state else self._history(requests)
        person = person[:, None].expand_as(own)
        parts = [counted.float(), own, person, own * person * own.shape[-1] ** 0.5]
        if self.request_state:
            parts.append((self.network.retrieval_vectors(state)[:, None] * self.index[place]).sum(-1, keepdim=True))
        if self.rates is not None:
            parts.append(self.impressions_before(requests, users, ids))
        return torch.cat(parts, dim=-1)

    def impressions_before(self, requests: Requests, users: np.ndarray, ids: Tensor) -> Tensor:
        """What became of earlier showings of items (B, K), as ``FeedbackRates`` counts them before each request: (B, K, n_features)."""
        columns = ids.clamp(min=0).cpu().numpy()
        who, when = (
            np.repeat(part, columns.shape[1])
            for part in (users, requests.reference_times(self.network.config.request_time))
        )
        found = self.rates.features(who, columns.ravel(), np.full(columns.size, -1), when)
        return torch.from_numpy(found).to(ids.device).view(*columns.shape, -1)

    def relevance(self, batch: Batch, ids: Tensor) -> Tensor:
        """Cosine of the query's and the items' text vectors (B, K); 0 without a query."""
        table = torch.cat([batch.query_text.new_zeros(1, self.text.shape[1]), batch.query_text])
        return (table[batch.request_queries[:, 0]][:, None] * self.text[ids]).sum(-1)

    def _history(self, requests: Requests) -> Tensor:
        weights = requests.histories.to_csr(len(self.items), lambda ages: DECAY ** ages.astype(np.float64))
        return F.normalize(torch.from_numpy(weights @ self.items.cpu().numpy()).to(self.items), dim=-1)


@dataclass
class RewardQuality:
    """Chances (B, K) of the three towers and text ``relevance`` (B, K)."""

    click: Tensor
    next: Tensor
    both: Tensor
    relevance: Tensor


class RewardModel(nn.Module):
    """See the module's docstring. ``base`` (3,) holds the mean of each tower's target, so that rewards of rare stages are on one scale."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("base", torch.ones(len(TOWERS)))
        self.bottom = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Dropout(0.1))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(_HIDDEN, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in TOWERS)

    def forward(self, features: Tensor) -> Tensor:
        """features (..., width) -> logits (..., 3)."""
        x = self.bottom(((features - self.mean) / self.scale).clamp(-_CLIP, _CLIP))
        return torch.cat([tower(x) for tower in self.towers], dim=-1)

    @torch.no_grad()
    def judge(self, features: Tensor) -> RewardQuality:
        chances = self(features).sigmoid()
        return RewardQuality(*chances.unbind(-1), features[..., NAMES.index("relevance")])

    def reward(self, judged: RewardQuality, weights: Mapping[str, float]) -> Tensor:
        """``sum weight x chance / mean chance`` over the towers, plus ``relevance`` x 10 (as in the paper): (B, K)."""
        total = 10 * weights.get("relevance", 0.0) * judged.relevance
        for place, name in enumerate(TOWERS):
            total = total + weights.get(name, 0.0) * getattr(judged, name) / self.base[place].clamp(min=1e-6)
        return total


@dataclass
class RewardData:
    """Rows shown: ``features`` (M, width), ``stages`` (M,), ``request`` (M,) the place of its request in time."""

    features: Tensor
    stages: Tensor
    request: Tensor

    @classmethod
    def join(cls, parts: Iterator[tuple[Tensor, Tensor, Tensor]]) -> RewardData:
        """From padded parts: features (B, K, width), stages (B, K) with -2 where there is nothing, requests (B,)."""
        kept = []
        for features, stages, request in parts:
            live = stages > -2
            kept.append((features[live], stages[live], request[:, None].expand_as(stages)[live]))
        return cls(*(torch.cat(part) for part in zip(*kept, strict=True)))


def losses(logits: Tensor, stages: Tensor, click: int, order: int) -> Tensor:
    """Binary cross-entropies of the three towers, (3,): click and both over all rows, next stage over the clicked ones."""
    clicked, ordered = (stages >= click).float(), (stages >= order).float()
    return torch.stack([
        F.binary_cross_entropy_with_logits(logits[:, 0], clicked),
        (F.binary_cross_entropy_with_logits(logits[:, 1], ordered, reduction="none") * clicked).sum() / clicked.sum().clamp(min=1),
        F.binary_cross_entropy_with_logits(logits[:, 2], ordered),
    ])  # fmt: skip


def fit_reward_model(
    data: RewardData, click: int, order: int, seed: int, epochs: int = 12, batch: int = 1024, patience: int = 2
) -> RewardModel:
    """Fit on the earlier nine tenths of the requests; the last tenth says when to stop. ``UserError`` where nothing was clicked."""
    if not bool((data.stages >= click).any()):
        raise UserError(
            "preference: none of the training requests before the policy's was clicked; lower preference.reward_share's start"
        )
    cut = data.request.float().quantile(0.9) if len(data.request) < 1 << 24 else data.request.max() * 0.9
    held = data.request > cut
    train = torch.nonzero(~held)[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RewardModel(data.features.shape[1])
        seen = data.features[train]
        spread = seen.std(0)
        model.mean.copy_(seen.mean(0))
        model.scale.copy_(torch.where(spread > 1e-5, spread, torch.inf))
        clicked, ordered = data.stages[train] >= click, data.stages[train] >= order
        model.base.copy_(
            torch.stack([clicked.float().mean(), ordered[clicked].float().mean().nan_to_num(0), ordered.float().mean()])
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
        best, kept, worse = float("inf"), None, 0
        for epoch in range(epochs):
            model.train()
            for rows in train[torch.randperm(len(train))].split(batch):
                optimizer.zero_grad()
                losses(model(data.features[rows]), data.stages[rows], click, order).sum().backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                found = (
                    float(losses(model(data.features[held]), data.stages[held], click, order).sum())
                    if held.any()
                    else -epoch
                )
            if found < best:
                best, kept, worse = found, {name: value.clone() for name, value in model.state_dict().items()}, 0
            else:
                worse += 1
                if worse >= patience:
                    break
        model.load_state_dict(kept)
    return model.eval()


def calibration(chance: np.ndarray, happened: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Rows of the calibration curve: equally many predictions a bin, their mean and what share came true."""
    order = np.argsort(chance, kind="stable")
    return [
        {"predicted": float(chance[rows].mean()), "observed": float(happened[rows].mean()), "rows": int(len(rows))}
        for rows in np.array_split(order, bins)
        if len(rows)
    ]


def expected_calibration_error(curve: list[dict[str, float]]) -> float:
    """Mean distance of predicted and observed shares, weighed by rows."""
    total = sum(row["rows"] for row in curve)
    return sum(abs(row["predicted"] - row["observed"]) * row["rows"] for row in curve) / max(total, 1)
