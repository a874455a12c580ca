"""Reranker: a ranking function over the evidence of candidates, fitted on validation requests by the likelihood of the item that came next.

List-wise softmax. Two forms compete on held-out validation requests: a linear one, pulled towards stated prior weights, which a dozen
requests cannot spoil; and the linear one plus a small network, which finds what only matters together. Recommendations and searches are
fitted apart. GRank's pattern (arXiv 2510.15299): whatever proposes, one target-aware function decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrec.errors import UserError
from genrec.ranking.candidates import MISSING, Candidates
from genrec.ranking.features import FEATURES

_PRIOR_STRENGTH = 5.0  # the prior's pull, in requests per squared standard deviation of evidence
_PRIOR = {"generated": 0.3, "retrieved": 0.5, "cooccurrence": 0.5, "transition": 0.3, "text": 5.0, "lexical": 0.5, "lexical_share": 5.0,
          "asked": 0.3}  # fmt: skip
_CLIP = 6.0  # standard deviations: a rare extreme may not decide alone
_HIDDEN = 64
_EPOCHS = 10
_BATCH = 128
_MIN_REQUESTS = 200  # fewer answered requests than this only fit the linear form
_HELD_OUT = 0.25  # share of them that decides between the forms


@dataclass
class Reranker:
    """``mean``, ``scale`` and ``weights`` (len(FEATURES),); ``network`` None for the linear form. Scores compare candidates of one request."""

    weights: Tensor
    mean: Tensor
    scale: Tensor
    network: nn.Sequential | None = None

    @classmethod
    def default(cls) -> Reranker:
        """Before anything is fitted: the log-scores of the sources, by rule of thumb."""
        size = len(FEATURES)
        return cls(torch.tensor([_PRIOR.get(name, 0.0) for name in FEATURES]), torch.zeros(size), torch.ones(size))

    @classmethod
    def fit(
        cls, parts: list[tuple[Candidates, Tensor]], seed: int = 0, queries: list[Tensor] | None = None
    ) -> Reranker:
        """``parts``: candidates and targets (B,) of validation requests. Requests whose target was not proposed teach nothing and are left out.

        ``queries``: for each part what was asked, (B,), -1 for nothing. Requests of one query are held out together: a form has to serve new ones.
        """
        lists = _Lists.collect(parts, queries or [torch.full_like(targets, -1) for _, targets in parts])
        if lists is None:
            return cls.default()
        mean, scale = lists.standardise()
        linear = lists.fit_linear(scale)
        if len(lists.place) < _MIN_REQUESTS:
            return cls(linear, mean, scale)
        order = torch.randperm(len(lists.place), generator=torch.Generator().manual_seed(seed))
        kept, held = hold_out(order, lists.query)
        if not min(len(kept), len(held)):  # one query alone
            return cls(linear, mean, scale)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trial = lists.fit_network(lists.take(kept).fit_linear(scale), kept)
            simple = lists.quality(lists.take(kept).fit_linear(scale), None, held)
            if lists.quality(*trial, held) <= simple:
                return cls(linear, mean, scale)
            weights, network = lists.fit_network(linear, order)
        return cls(weights, mean, scale, network)

    def scores(self, evidence: Tensor) -> Tensor:
        """evidence (..., len(FEATURES)) -> (...)."""
        linear, together = self.contributions(evidence)
        return linear.sum(-1) if together is None else linear.sum(-1) + together

    def contributions(self, evidence: Tensor) -> tuple[Tensor, Tensor | None]:
        """What makes up ``scores``: the linear part by feature (..., len(FEATURES)), and the network's part (...), None for the linear form.

        Sums over features and hidden units run in one order for each candidate: a score does not depend on the other rows.
        """
        device = evidence.device
        x = _standard(evidence, self.mean.to(device), self.scale.to(device))
        linear = x * self.weights.to(device)
        if self.network is None:
            return linear, None
        network = self.network.to(device)
        with torch.no_grad():
            return linear, (network[:-1](x) * network[-1].weight[0]).sum(-1)

    def rank(self, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
        """The k best candidates: ids (B, k), -1 where empty, and scores; equal scores go to the lower item id."""
        scores = self.scores(candidates.evidence).masked_fill(candidates.ids == MISSING, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :k], candidates.ids.gather(1, order)[:, :k]
        missing = k - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, missing), value=MISSING)
        return ids, torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors that ``from_state`` takes back; the names of the evidence travel with them, as bytes."""
        names = torch.tensor(list("\n".join(FEATURES).encode()), dtype=torch.uint8)
        state = {"features": names, "weights": self.weights, "mean": self.mean, "scale": self.scale}
        if self.network is not None:
            state |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return {name: value.contiguous().cpu() for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Reranker:
        """What ``state`` described. Raises ``UserError`` where it was fitted on other evidence than this version computes."""
        names = tuple(bytes(state["features"].tolist()).decode().split("\n")) if "features" in state else ()
        if names != FEATURES:
            raise UserError(
                "the fusion weights were fitted on other evidence than this version of genrec computes; run genrec train again"
            )
        inner = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        network = None
        if inner:
            network = _network(len(FEATURES), len(inner["0.weight"]))
            network.load_state_dict(inner)
            network.eval()
        return cls(state["weights"], state["mean"], state["scale"], network)

    def importance(self) -> dict[str, float]:
        """The linear weight of each kind of evidence per standard deviation."""
        return dict(zip(FEATURES, self.weights.tolist(), strict=True))


@dataclass
class _Lists:
    """N lists of K candidates: ``evidence`` (N, K, F), ``live`` (N, K), ``place`` (N,) of the item that came next, ``query`` (N,)."""

    evidence: Tensor
    live: Tensor
    place: Tensor
    query: Tensor

    @classmethod
    def collect(cls, parts: list[tuple[Candidates, Tensor]], queries: list[Tensor]) -> _Lists | None:
        width = max((part.ids.shape[1] for part, _ in parts), default=0)
        evidence, live, place, query = [], [], [], []
        for (part, targets), asked in zip(parts, queries, strict=True):
            hit = (part.ids == targets[:, None]) & (part.ids != MISSING)
            rows = hit.any(1)
            pad = width - part.ids.shape[1]
            evidence.append(nn.functional.pad(part.evidence[rows], (0, 0, 0, pad)))
            live.append(nn.functional.pad(part.ids[rows] != MISSING, (0, pad)))
            place.append(hit[rows].float().argmax(1))
            query.append(asked.to(rows.device)[rows])
        if not sum(len(rows) for rows in place):
            return None
        return cls(
            torch.cat(evidence).float().cpu(), torch.cat(live).cpu(), torch.cat(place).cpu(), torch.cat(query).cpu()
        )

    def take(self, rows: Tensor) -> _Lists:
        return _Lists(self.evidence[rows], self.live[rows], self.place[rows], self.query[rows])

    def standardise(self) -> tuple[Tensor, Tensor]:
        """Standardise in place; mean and scale (F,). CandidateFeatures that never varies gets an infinite scale: it counts for nothing later too."""
        seen = self.evidence[self.live]
        mean, scale = seen.mean(0), seen.std(0)
        scale = torch.where(scale > 1e-5, scale, torch.inf)
        self.evidence = _standard(self.evidence, mean, scale) * self.live[..., None]
        return mean, scale

    def fit_linear(self, scale: Tensor) -> Tensor:
        """Weights (F,) of the convex, prior-bound form."""
        prior = Reranker.default().weights * torch.where(scale.isfinite(), scale, 0)
        weights = prior.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = (self.evidence @ weights).masked_fill(~self.live, -torch.inf)
            loss = nn.functional.cross_entropy(logits, self.place)
            loss = loss + _PRIOR_STRENGTH / len(self.place) * (weights - prior).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weights.detach()

    def fit_network(self, start: Tensor, rows: Tensor) -> tuple[Tensor, nn.Sequential]:
        """Linear weights, started from ``start``, and the network beside them, fitted on the lists ``rows``."""
        weights, network = nn.Parameter(start.clone()), _network(self.evidence.shape[-1], _HIDDEN)
        optimizer = torch.optim.AdamW([weights, *network.parameters()], lr=3e-3, weight_decay=1e-2)
        steps = max(1, len(rows) // _BATCH) * _EPOCHS
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
        network.train()
        for _ in range(_EPOCHS):
            for part in rows[torch.randperm(len(rows))].tensor_split(max(1, len(rows) // _BATCH)):
                x = self.evidence[part]
                logits = (x @ weights + network(x)[..., 0]).masked_fill(~self.live[part], -torch.inf)
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, self.place[part]).backward()
                optimizer.step()
                schedule.step()
        return weights.detach(), network.eval()

    @torch.no_grad()
    def quality(self, weights: Tensor, network: nn.Sequential | None, rows: Tensor) -> float:
        """Mean nDCG@10 over the lists ``rows``."""
        gains = []
        for part in rows.split(1024):
            x = self.evidence[part]
            scores = x @ weights + (0 if network is None else network(x)[..., 0])
            scores = scores.masked_fill(~self.live[part], -torch.inf)
            rank = (scores > scores.gather(1, self.place[part][:, None])).sum(1).float()
            gains.append((rank < 10) / torch.log2(rank + 2))
        return float(torch.cat(gains).mean())


def hold_out(order: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """``order`` (N,) in two: what is fitted and what decides. Requests with the same query (not -1) are on the same side."""
    _, group = query[order].unique(return_inverse=True)
    group = torch.where(query[order] < 0, len(order) + torch.arange(len(order)), group)
    _, group, sizes = group.unique(return_inverse=True, return_counts=True)
    first = torch.full((len(sizes),), len(order)).scatter_reduce(0, group, torch.arange(len(order)), "amin")
    drawn = first.argsort()  # groups in the order in which they are drawn
    mass = torch.zeros(len(sizes), dtype=torch.long).scatter(0, drawn, sizes[drawn].cumsum(0))
    held = (mass - sizes >= len(order) - int(_HELD_OUT * len(order)))[group]
    return order[~held], order[held]


def _standard(evidence: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((evidence - mean) / scale).clamp(-_CLIP, _CLIP)


def _network(features: int, hidden: int) -> nn.Sequential:
    """A network that starts as zero, so that fitting starts from the linear form."""
    last = nn.Linear(hidden, 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, hidden), nn.ReLU(), last
    )
