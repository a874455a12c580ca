"""Baselines of the ranking protocol: logistic regression, and target attention (DIN, arXiv 1706.06978).

Both read what the ranking head reads: the same counts, item and situation, and (DIN) the same history with its actions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from genrec.data.dataset import Dataset
from genrec.data.impressions import ImpressionLog

STRENGTHS = (0.003, 0.03, 0.3)  # of logistic regression's C, chosen on validation


@dataclass(frozen=True)
class Rows:
    """Rows of the impressions: ``index`` (n,) into their table."""

    impressions: ImpressionLog
    index: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """The slate of each row."""
        return self.impressions.owner[self.index]

    @property
    def users(self) -> np.ndarray:
        """The user of each row."""
        return self.impressions.users[self.owner]

    @property
    def labels(self) -> np.ndarray:
        """Which stages each row reached: (n, stages) bool."""
        return self.impressions.reached[self.index]


class LogisticClicks:
    """One logistic regression per stage over the counts and one-hot item, surface, category and maker."""

    def __init__(self, strength: float, seed: int = 0):
        self.strength, self.seed = strength, seed

    def _matrix(self, rows: Rows) -> sp.csr_matrix:
        rates, items = rows.impressions.rates, rows.impressions.items[rows.index]
        columns = (items, rows.impressions.surfaces[rows.index], rates.categories[items], rates.brands[items])
        sizes = (
            len(rates.brands),
            len(rates.surfaces),
            int(rates.categories.max(initial=0)) + 1,
            int(rates.brands.max(initial=0)) + 1,
        )
        parts = [sp.csr_matrix(rows.impressions.features(rows.index))]
        for codes, size in zip(columns, sizes, strict=True):
            live = np.flatnonzero(codes >= 0)
            parts.append(
                sp.csr_matrix((np.ones(len(live), np.float32), (live, codes[live])), shape=(len(codes), max(size, 1)))
            )
        return sp.hstack(parts).tocsr()

    def fit(self, rows: Rows) -> LogisticClicks:
        """Fit one model per stage."""
        matrix = self._matrix(rows)
        settings = {"C": self.strength, "max_iter": 200, "random_state": self.seed}
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # stopping early is one more bound on the weights; validation chooses
            self.models = [LogisticRegression(**settings).fit(matrix, labels) for labels in rows.labels.T]
        return self

    def score(self, rows: Rows) -> np.ndarray:
        """Log-odds (n, stages)."""
        matrix = self._matrix(rows)
        return np.stack([model.decision_function(matrix) for model in self.models], axis=1)


class _Net(nn.Module):
    def __init__(self, items: int, categories: int, surfaces: int, actions: int, evidence: int, stages: int, dim: int):
        super().__init__()
        self.items, self.categories = nn.Embedding(items, dim), nn.Embedding(categories + 1, dim)
        self.actions, self.surfaces = nn.Embedding(actions, dim), nn.Embedding(surfaces + 1, dim)
        for table in (self.items, self.categories, self.actions, self.surfaces):
            nn.init.normal_(table.weight, std=0.05)
        self.attention = nn.Sequential(nn.Linear(4 * dim, 32), nn.PReLU(), nn.Linear(32, 1))
        self.tower = nn.Sequential(
            nn.Linear(4 * dim + evidence, 64),
            nn.PReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 32),
            nn.PReLU(),
            nn.Linear(32, stages),
        )

    def forward(
        self,
        item: Tensor,
        category: Tensor,
        surface: Tensor,
        past: Tensor,
        past_category: Tensor,
        action: Tensor,
        evidence: Tensor,
    ):
        """Logits (n, stages) of items (n,) after histories (n, T) of item ids, -1 for padding."""
        target = self.items(item) + self.categories(category + 1)
        live = past >= 0
        events = self.items(past.clamp(min=0)) + self.categories(past_category + 1)
        query = target[:, None].expand_as(events)
        felt = events + self.actions(action)
        weight = (
            self.attention(torch.cat([query, felt, query - felt, query * events], dim=-1))[..., 0] * live
        )  # not normalised, as in the paper
        pooled = (weight[..., None] * felt).sum(1)
        return self.tower(torch.cat([target, pooled, target * pooled, self.surfaces(surface + 1), evidence], dim=-1))


class TargetAttention:
    """DIN-style target attention: the history is pooled with weights that depend on the candidate.

    Trained by Adam, stopped on validation.
    """

    def __init__(self, dim: int = 16, length: int = 20, epochs: int = 4, batch: int = 1024, seed: int = 0):
        self.dim, self.length, self.epochs, self.batch, self.seed = dim, length, epochs, batch, seed

    def _inputs(self, dataset: Dataset, rows: Rows) -> list[Tensor]:
        impressions = rows.impressions
        items, categories = impressions.items[rows.index], impressions.rates.categories
        before, start = impressions.before[rows.owner], np.asarray(dataset.offsets)[rows.users]
        position = before[:, None] - 1 - np.arange(self.length)
        live = position >= start[:, None]
        position = np.where(live, position, 0)
        past = np.where(live, np.asarray(dataset.items)[position].astype(np.int64), -1)
        actions = np.where(live, np.asarray(dataset.actions)[position].astype(np.int64), 0)
        past_categories = np.where(live, categories[np.maximum(past, 0)], -1)
        arrays = (
            items,
            categories[items],
            impressions.surfaces[rows.index],
            past,
            past_categories,
            actions,
            impressions.features(rows.index),
        )
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]

    def fit(self, dataset: Dataset, train: Rows, judge) -> TargetAttention:
        """Fit on ``train``; ``judge(model)`` is the quality on validation rows, which come from the same log."""
        rates = train.impressions.rates
        inputs, labels = self._inputs(dataset, train), torch.from_numpy(train.labels.astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net = _Net(
                len(rates.brands),
                int(rates.categories.max(initial=0)) + 1,
                len(rates.surfaces),
                len(dataset.actions_chain),
                inputs[-1].shape[1],
                labels.shape[1],
                self.dim,
            )
            optimizer = torch.optim.Adam(self.net.parameters(), lr=2e-3, weight_decay=1e-6)
            best, kept = -np.inf, None
            for _ in range(self.epochs):
                self.net.train()
                for part in torch.randperm(len(labels)).split(self.batch):
                    optimizer.zero_grad()
                    logits = self.net(*(one[part] for one in inputs))
                    nn.functional.binary_cross_entropy_with_logits(logits, labels[part]).backward()
                    optimizer.step()
                quality = judge(self)
                if quality > best:
                    best, kept = quality, {name: value.clone() for name, value in self.net.state_dict().items()}
            assert kept is not None
            self.net.load_state_dict(kept)
        return self

    @torch.no_grad()
    def score(self, dataset: Dataset, rows: Rows) -> np.ndarray:
        """Log-odds (n, stages)."""
        self.net.eval()
        inputs = self._inputs(dataset, rows)
        parts = [self.net(*(one[part] for one in inputs)) for part in torch.arange(len(rows.index)).split(8192)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, 0))
