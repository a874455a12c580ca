"""Re-ranker: scores candidates by their features, fitted on validation requests by a list-wise softmax over the target.

The linear form is regularised towards prior weights, so it needs few requests. The other form adds a small network for
feature interactions; the two compete on held-out requests. Recommendation and search have separate re-rankers. As in
GRank (arXiv 2510.15299), one target-aware function orders the proposals of all sources.

Validation requests are few. A re-ranker of counts alone is therefore fitted before on training requests
(``counted.py``), and its score is one more feature, ``BASE``, of the one that also reads what the network says. That
one is the mean of several networks wherever its requests are not too few for them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrec.errors import UserError
from genrec.ranking.candidates import MISSING, Candidates
from genrec.ranking.features import FACET_FEATURES, FEATURES, TITLE_FEATURES
from genrec.ranking.fitting import fit_network, fit_weights, list_loss
from genrec.ranking.interactions import (
    HIDDEN,
    averaged,
    hidden_states,
    interaction_network,
    keep_apart,
    linear_layer,
    n_members,
)
from genrec.ranking.word_mixture import WordMixture

# Weight of the prior, in requests per squared standard deviation of a feature; a base is a good prior already.
_PRIOR_STRENGTH, _PRIOR_STRENGTH_WITH_BASE = 5.0, 60.0
_PRIOR = {
    "generated": 0.3,
    "retrieved": 0.5,
    "cooccurrence": 0.5,
    "transition": 0.3,
    "text": 5.0,
    "lexical": 0.5,
    "lexical_share": 5.0,
    "popular_match": 0.2,
    "query_hits": 0.3,
}
_PRIOR_WITH_BASE = {"counts": 1.0, "generated": 0.1, "retrieved": 0.2}
BASE = "counts"  # the score of the re-ranker of counts alone
# What title and facets have of a query never speaks against an item in the linear form: where searches seldom name
# them, a few lists would say so by chance, and decide the searches that do.
_NEVER_AGAINST = [FEATURES.index(name) for name in (*TITLE_FEATURES, *FACET_FEATURES)]
_CLIP = 6.0  # standard deviations; limits the effect of rare extreme values
_EPOCHS, _RATE = 10, 3e-3
_MEMBERS = 3  # networks whose outputs are averaged, in a re-ranker of counts and in one over it
_FEW_EPOCHS = 5  # of the networks of counts, and over a base where lists are few: more learn them by heart
_MANY = 4000  # lists from which on networks over a base are fitted for ``_EPOCHS``
_BATCH = 128
_BLOCK = 1024  # lists standardised at a time
_ROWS = 1024  # candidates scored at a time on a CPU: what a network computes of them stays in the cache
# With fewer usable requests only the linear form is fitted; a base has its own network of interactions.
_MIN_REQUESTS, _MIN_REQUESTS_WITH_BASE = 200, 2000
_HELD_OUT = 0.25  # fraction of the requests that selects the form


@dataclass
class Reranker:
    """A scoring function over candidate features; its scores compare candidates of one request.

    ``mean``, ``scale`` and ``weights`` have shape (len(FEATURES),), one more with ``base``, whose score is the last
    feature; ``network`` is None for the linear form. ``mixture``: what mixes words into the retrieval of searches.
    """

    weights: Tensor
    mean: Tensor
    scale: Tensor
    network: nn.Sequential | None = None
    base: Reranker | None = None
    mixture: WordMixture | None = None

    def __post_init__(self) -> None:
        self._members = 1 if self.network is None else n_members(self.network)

    @classmethod
    def default(cls, base: Reranker | None = None) -> Reranker:
        """The re-ranker before fitting: prior weights on the log-scores of the sources."""
        prior, names = (_PRIOR, FEATURES) if base is None else (_PRIOR_WITH_BASE, (*FEATURES, BASE))
        weights = torch.tensor([prior.get(name, 0.0) for name in names])
        return cls(weights, torch.zeros(len(names)), torch.ones(len(names)), None, base)

    @classmethod
    def fit(
        cls,
        parts: list[tuple[Candidates, Tensor]],
        seed: int = 0,
        queries: list[Tensor] | None = None,
        present: Reranker | None = None,
        base: Reranker | None = None,
    ) -> Reranker:
        """Fit on validation requests; requests whose target is not a candidate are skipped.

        ``parts``: chunks of candidates and targets (B,). ``queries``: the query index (B,) of each chunk's requests,
        -1 without a query. Requests of one query are held out together, so that the forms are compared on new queries.
        ``present``: the re-ranker before an update, fitted on other requests. Its weights are the prior, and it stays
        where no form is better on the held-out requests, or where there are too few to compare; its base is kept.
        ``base``: a re-ranker fitted on other requests, whose score is one more feature.
        """
        base = base if present is None else present.base
        lists = _Lists.collect(parts, queries or [torch.full_like(targets, -1) for _, targets in parts], base)
        if lists is None:
            return present or cls.default(base)
        mean, scale = lists.standardise(present)
        linear = lists.fit_linear(cls.default(base), scale, present)
        if len(lists.target) < (_MIN_REQUESTS if base is None else _MIN_REQUESTS_WITH_BASE):
            return present or cls(linear, mean, scale, None, base)
        if base is not None and present is None:
            many = len(lists.target) >= _MANY
            weights, network = lists.fit_members(linear, seed, _EPOCHS if many else _FEW_EPOCHS)
            return cls(weights, mean, scale, network, base)
        order = torch.randperm(len(lists.target), generator=torch.Generator().manual_seed(seed))
        kept, held = hold_out(order, lists.query)
        if not min(len(kept), len(held)):  # one query alone
            return present or cls(linear, mean, scale, None, base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = lists.take(kept).fit_linear(cls.default(base), scale, present)
            trial = lists.fit_network(start, kept, present)
            best = max(qualities := [lists.quality(start, None, held), lists.quality(*trial, held)])
            if present is not None and best <= lists.quality(present.weights, present.network, held):
                return present
            if qualities[0] == best:
                return cls(linear, mean, scale, None, base)
            weights, network = lists.fit_network(linear, order, present)
        return cls(weights, mean, scale, network, base)

    @classmethod
    def fit_counts(cls, parts: list[tuple[Candidates, Tensor]], seed: int = 0) -> Reranker | None:
        """A re-ranker of counts, for ``base``: fitted on lists of training requests, ``parts`` as in ``fit``.

        The mean of several networks, or the linear form where lists are few. None without any.
        """
        lists = _Lists.collect(parts, [torch.full_like(targets, -1) for _, targets in parts], None)
        if lists is None:
            return None
        mean, scale = lists.standardise(None)
        linear = lists.fit_linear(cls.default(), scale, None)
        if len(lists.target) < _MIN_REQUESTS_WITH_BASE:
            return cls(linear, mean, scale)
        weights, network = lists.fit_members(linear, seed, _FEW_EPOCHS)
        return cls(weights, mean, scale, network)

    def scores(self, features: Tensor) -> Tensor:
        """Scores (...) of candidate features (..., len(FEATURES))."""
        rows = features.reshape(-1, features.shape[-1])
        parts = [self.contributions(part) for part in (rows.split(_ROWS) if rows.device.type == "cpu" else [rows])]
        sums = [linear.sum(-1) if together is None else linear.sum(-1) + together for linear, together in parts]
        return torch.cat(sums).view(features.shape[:-1])

    def contributions(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The terms of ``scores``: the linear one of each feature (..., len(FEATURES)), and the network's output (...).

        The output is None for the linear form. Each candidate's sums run in a fixed order: a score does not depend on
        the other rows.
        """
        device = features.device
        weights, mean, scale = (values.to(device) for values in (self.weights, self.mean, self.scale))
        size, together = features.shape[-1], None
        if self.base is None:
            x = _standard(features, mean, scale)
            linear = x[..., :size] * weights[:size]
        else:
            # The base's score is the sum of its own terms: each feature gets its part of it.
            own, inner = self.base.contributions(features)
            added = torch.zeros_like(own[..., 0]) if inner is None else inner
            x = _standard(torch.cat([features, (own.sum(-1) + added)[..., None]], dim=-1), mean, scale)
            factor = weights[size] / scale[size]
            linear, together = x[..., :size] * weights[:size] + factor * own, factor * added
        if self.network is None:
            return linear, together
        network = self.network.to(device)
        with torch.no_grad():
            inner = (hidden_states(network, x, self._members) * linear_layer(network, 5).weight[0]).sum(-1)
        return linear, inner if together is None else together + inner

    def rank(self, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
        """The k best candidates: ids (B, k), -1 where empty, and scores; equal scores go to the lower item id."""
        ids, features = candidates.union()
        scores = self.scores(features).masked_fill(ids == MISSING, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :k], ids.gather(1, order)[:, :k]
        missing = k - ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, missing), value=MISSING)
        return ids, torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors that ``from_state`` takes back; includes the feature names, as bytes."""
        names = torch.tensor(list("\n".join(FEATURES).encode()), dtype=torch.uint8)
        state = {"features": names, "weights": self.weights, "mean": self.mean, "scale": self.scale}
        if self.network is not None:
            state |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.base is not None:
            state |= {f"base.{name}": value for name, value in self.base.state().items()}
        if self.mixture is not None:
            state["mixture"] = self.mixture.weights
        return {name: value.contiguous().cpu() for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Reranker:
        """The re-ranker that ``state`` describes. Raises ``UserError`` if it was fitted on other features."""
        names = tuple(bytes(state["features"].tolist()).decode().split("\n")) if "features" in state else ()
        if names != FEATURES:
            raise UserError(
                "the re-ranker was fitted on other features than this version computes; run genrec train again"
            )
        inner = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        network = None
        if inner:
            network = interaction_network(len(state["weights"]), len(inner["0.weight"]))
            network.load_state_dict(inner)
            network.eval()
        below = {name.removeprefix("base."): value for name, value in state.items() if name.startswith("base.")}
        base = cls.from_state(below) if below else None
        mixture = WordMixture(state["mixture"]) if "mixture" in state else None
        return cls(state["weights"], state["mean"], state["scale"], network, base, mixture)

    def importance(self) -> dict[str, float]:
        """The linear weight of each feature per standard deviation, and that of the base's score."""
        names = FEATURES if self.base is None else (*FEATURES, BASE)
        return dict(zip(names, self.weights.tolist(), strict=True))


@dataclass
class _Lists:
    """N lists of K candidates: ``features`` (N, K, F), ``live`` (N, K), target column and query index (N,)."""

    features: Tensor
    live: Tensor
    target: Tensor
    query: Tensor

    @classmethod
    def collect(
        cls, parts: list[tuple[Candidates, Tensor]], queries: list[Tensor], base: Reranker | None
    ) -> _Lists | None:
        hits = [_hits(part, targets) for part, targets in parts]
        total, width = sum(int(hit.any(1).sum()) for hit in hits), max((hit.shape[1] for hit in hits), default=0)
        if not total:
            return None
        found = cls(
            torch.zeros(total, width, len(FEATURES) + (base is not None)),
            torch.zeros(total, width, dtype=torch.bool),
            torch.zeros(total, dtype=torch.long),
            torch.zeros(total, dtype=torch.long),
        )
        begin = 0
        for (part, _), hit, own in zip(parts, hits, queries, strict=True):
            ids, values = part.union()
            rows = hit.any(1)
            some = slice(begin, begin + int(rows.sum()))
            found.features[some, : ids.shape[1]] = _with_base(base, values[rows].float().cpu())
            found.live[some, : ids.shape[1]] = (ids[rows] != MISSING).cpu()
            found.target[some] = hit[rows].float().argmax(1).cpu()
            found.query[some] = own.cpu()[rows.cpu()]
            begin = some.stop
        return found

    def take(self, rows: Tensor) -> _Lists:
        return _Lists(self.features[rows], self.live[rows], self.target[rows], self.query[rows])

    def standardise(self, present: Reranker | None) -> tuple[Tensor, Tensor]:
        """Standardise in place, as ``present`` does where given; returns mean and scale (F,).

        A constant feature gets an infinite scale.
        """
        seen = self.features[self.live]
        mean, scale = (seen.mean(0), seen.std(0)) if present is None else (present.mean, present.scale)
        scale = torch.where(scale > 1e-5, scale, torch.inf)
        for rows in self.features.split(_BLOCK):
            rows.copy_(_standard(rows, mean, scale))
        self.features.mul_(self.live[..., None])
        return mean, scale

    def fit_linear(self, default: Reranker, scale: Tensor, present: Reranker | None) -> Tensor:
        """Weights (F,) of the convex form, bound to those of ``default``, or of ``present`` where given."""
        strength = _PRIOR_STRENGTH if default.base is None else _PRIOR_STRENGTH_WITH_BASE
        prior = default.weights * torch.where(scale.isfinite(), scale, 0)
        if present is not None:
            prior = present.weights

        kept = torch.ones_like(prior)

        def loss(weights: Tensor) -> Tensor:
            distance = (weights - prior).square().sum()
            fit = list_loss(self.features @ (weights * kept), self.live, self.target)
            return fit + strength / len(self.target) * distance

        weights = fit_weights(prior, loss)
        against = [column for column in _NEVER_AGAINST if weights[column] < 0]
        if not against:
            return weights
        kept[against] = 0
        return fit_weights(prior * kept, loss) * kept

    def fit_network(
        self, start: Tensor, rows: Tensor, present: Reranker | None, epochs: int = _EPOCHS
    ) -> tuple[Tensor, nn.Sequential]:
        """Linear weights and the additional network, fitted on the lists ``rows``.

        They start from ``start`` and no network, or from both of ``present`` where that has a network.
        """
        weights, network = nn.Parameter(start.clone()), interaction_network(self.features.shape[-1], HIDDEN)
        if present is not None and present.network is not None:
            weights, network = nn.Parameter(present.weights.clone()), copy.deepcopy(present.network)
            keep_apart(network)

        def loss(part: Tensor) -> Tensor:
            x = self.features[part]
            return list_loss(x @ weights + network(x)[..., 0], self.live[part], self.target[part])

        fit_network([weights, *network.train().parameters()], loss, rows, _RATE, epochs, _BATCH)
        return weights.detach(), network.eval()

    def fit_members(self, start: Tensor, seed: int, epochs: int) -> tuple[Tensor, nn.Sequential]:
        """The mean of ``_MEMBERS`` forms with a network, each fitted on all lists from linear weights ``start``.

        One alone depends on its seed, and so does a choice between it and the linear form.
        """
        every, members = torch.arange(len(self.target)), []
        with torch.random.fork_rng(devices=[]):
            for member in range(_MEMBERS):
                torch.manual_seed(seed + member)
                members.append(self.fit_network(start, every, None, epochs))
        weights = torch.stack([weights for weights, _ in members]).mean(0)
        return weights, averaged([network for _, network in members])

    @torch.no_grad()
    def quality(self, weights: Tensor, network: nn.Sequential | None, rows: Tensor) -> float:
        """Mean nDCG@10 over the lists ``rows``."""
        gains = []
        for part in rows.split(1024):
            x = self.features[part]
            scores = x @ weights + (0 if network is None else network(x)[..., 0])
            scores = scores.masked_fill(~self.live[part], -torch.inf)
            rank = (scores > scores.gather(1, self.target[part][:, None])).sum(1).float()
            gains.append((rank < 10) / torch.log2(rank + 2))
        return float(torch.cat(gains).mean())


def _hits(part: Candidates, targets: Tensor) -> Tensor:
    """Which candidates (B, K) are the targets (B,)."""
    ids = part.union()[0]
    return (ids == targets[:, None]) & (ids != MISSING)


def with_hits(part: Candidates, targets: Tensor) -> Tensor:
    """Drop the lists that ``Reranker.fit`` would skip, and all but ids and features; returns which remained: (B,)."""
    ids, features = part.union()
    rows = _hits(part, targets).any(1)
    part.ids, part.features = ids[rows], features[rows]
    part.retrieved = part.generated = part.proven = part.ranked = None
    return rows


def hold_out(order: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``order`` (N,) into fitted and held-out requests; requests with the same query (not -1) stay together."""
    _, group = query[order].unique(return_inverse=True)
    group = torch.where(query[order] < 0, len(order) + torch.arange(len(order)), group)
    _, group, sizes = group.unique(return_inverse=True, return_counts=True)
    first = torch.full((len(sizes),), len(order)).scatter_reduce(0, group, torch.arange(len(order)), "amin")
    drawn = first.argsort()  # groups in the order in which they are drawn
    mass = torch.zeros(len(sizes), dtype=torch.long).scatter(0, drawn, sizes[drawn].cumsum(0))
    held = (mass - sizes >= len(order) - int(_HELD_OUT * len(order)))[group]
    return order[~held], order[held]


def _with_base(base: Reranker | None, features: Tensor) -> Tensor:
    """Features (..., F), and behind them the base's score, if there is a base."""
    return features if base is None else torch.cat([features, base.scores(features)[..., None]], dim=-1)


def _standard(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Standardised features, clipped; the score of a base is neither clipped nor centred, so that it stays a sum."""
    x, size = (features - mean) / scale, len(FEATURES)
    return torch.cat([x[..., :size].clamp(-_CLIP, _CLIP), features[..., size:] / scale[size:]], dim=-1)
