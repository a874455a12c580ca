"""Fusion: one weight per kind of evidence, fitted on validation requests by the likelihood of the item that came next.

A list-wise softmax regression: convex, a handful of weights, pulled towards stated prior weights with the strength of a few requests, so
that neither thousands of requests nor a dozen can spoil it. Weights of recommendations and of searches are fitted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.decoding.proposals import FEATURES, MISSING, Candidates

_PRIOR_STRENGTH = 5.0  # the prior's pull, in requests per squared standard deviation of evidence
_PRIOR = {"generated": 0.3, "retrieved": 0.5, "cooccurrence": 0.5, "transition": 0.3, "text": 5.0}


@dataclass
class Fusion:
    """Weights of ``FEATURES``."""

    weights: Tensor

    @classmethod
    def default(cls) -> Fusion:
        """Before anything is fitted: the log-scores of the sources, by rule of thumb."""
        return cls(torch.tensor([_PRIOR.get(name, 0.0) for name in FEATURES]))

    @classmethod
    def fit(cls, parts: list[tuple[Candidates, Tensor]]) -> Fusion:
        """``parts``: candidates and targets (B,) of validation requests. Requests whose target was not proposed teach nothing and are left out."""
        width = max((part.ids.shape[1] for part, _ in parts), default=0)
        evidence, live, place = [], [], []
        for part, targets in parts:
            hit = (part.ids == targets[:, None]) & (part.ids != MISSING)
            rows = hit.any(1)
            pad = width - part.ids.shape[1]
            evidence.append(torch.nn.functional.pad(part.evidence[rows], (0, 0, 0, pad)))
            live.append(torch.nn.functional.pad(part.ids[rows] != MISSING, (0, pad)))
            place.append(hit[rows].float().argmax(1))
        n_rows = sum(len(rows) for rows in place)
        if n_rows == 0:
            return cls.default()
        evidence, live, place = torch.cat(evidence).float(), torch.cat(live), torch.cat(place)
        mean, scale = evidence[live].mean(0), evidence[live].std(0).clamp(min=1e-6)
        evidence = ((evidence - mean) / scale).masked_fill(~live[..., None], 0)
        prior = cls.default().weights.to(scale.device) * scale
        weights = prior.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = (evidence @ weights).masked_fill(~live, -torch.inf)
            loss = torch.nn.functional.cross_entropy(logits, place) + _PRIOR_STRENGTH / n_rows * (weights - prior).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls((weights.detach() / scale).cpu())

    def rank(self, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
        """The k best candidates: ids (B, k), -1 where empty, and scores; equal scores go to the lower item id."""
        scores = candidates.evidence @ self.weights.to(candidates.evidence.device)
        scores = scores.masked_fill(candidates.ids == MISSING, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :k], candidates.ids.gather(1, order)[:, :k]
        missing = k - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, missing), value=MISSING)
        return ids, torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)

    def to_dict(self) -> dict[str, float]:
        return dict(zip(FEATURES, self.weights.tolist(), strict=True))

    @classmethod
    def from_dict(cls, weights: dict[str, float]) -> Fusion:
        return cls(torch.tensor([weights[name] for name in FEATURES]))
