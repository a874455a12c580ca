"""Retrieval of searches: a mixture of the dense distribution over items and of one over the items that words name.

``p(item) = (1 - g) p_dense(item) + g p_words(item)``, with ``p_words`` log-linear in ``ITEM`` over the items that share
a word with the query: how well they match by BM25F, how much of the query their title and category have, how much of
their searches said more or less, how popular they are, how probable by dense retrieval. It has weights of its own for
queries of which some category has all words: within a category other things tell items apart. Where searches are few,
both sets of weights are nearly the same.
The gate ``g`` follows from how much the query says: how many items match nearly as well as the best one, how many words
it has, whether some title has all of them, and whether some category does. A title names one item, which then leads; a
category's words name hundreds, of which dense retrieval knows the right ones. The numbers are fitted by maximum
likelihood on validation searches; they stay out where held-out ones do not gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.ranking.fitting import fit_weights
from genrec.ranking.word_features import WordFeatures

MIN_SEARCHES = 100  # with fewer nothing is fitted
# Of an item: BM25F as a fraction of the query's best; fractions of the query that its title has as typed, that stand in
# this order, that its category has, and that levels have which the query names as a whole; whether its category has the
# whole query; fractions of its searches that had more and fewer words; log(1 + events), of all time and of the last
# (``WINDOWS``); the log-probability of dense retrieval, which tells the items of a category apart.
ITEM = (
    "share", "title_words", "title_order", "category_words", "category_named", "category_whole", "longer", "shorter",
    "popularity", "short_popularity", "dense",
)  # fmt: skip
GATE = ("constant", "near", "words", "whole_title", "whole_category")
START = (*[10.0, *[0.0] * 10] * 2, -1.0, *[0.0] * 4)
SCALE = (*[*[10.0] * 6, *[1.0] * 5] * 2, *[1.0] * 5)  # sizes of the numbers, so that one step suits all
RIDGE = 1e-3
APART = 30.0  # over the number of searches: how much both sets of weights are held together
NEVER = -1e4  # a log-probability of nothing whose gradient is finite


@dataclass(frozen=True)
class WordMatches:
    """Candidates of B requests as the mixture reads them, in rising order of ids, -1 where empty.

    ``ids`` (B, K); ``dense`` (B, K) log-probabilities of dense retrieval; ``items`` (B, K, len(ITEM)), whose share is 0
    without a common word; ``gate`` (B, len(GATE)).
    """

    ids: Tensor
    dense: Tensor
    items: Tensor
    gate: Tensor

    @classmethod
    def of(cls, ids: Tensor, dense: Tensor, said: WordFeatures, related: Tensor, popularity: Tensor) -> WordMatches:
        """The matches of candidates ``ids`` (B, K) with their word features.

        ``related`` (B, K, 2): searches in more and in fewer words; ``popularity`` (B, K, 2): of all time and the last.
        """
        live = (said.share > 0) & (ids >= 0)
        whole = [((part > 0) & live).any(1).float() for part in (said.title[..., 3], said.facets[..., 3])]
        category = said.facets[..., 0], said.facets[..., 1], said.facets[..., 3]
        items = [said.share, *said.title[..., :2].unbind(-1), *category]
        items += [*related.unbind(-1), *popularity.unbind(-1), dense]
        gate = [torch.ones_like(said.near), said.near, said.words, *whole]
        return cls(ids, dense, torch.stack(items, dim=-1), torch.stack(gate, dim=-1))

    @property
    def named(self) -> Tensor:
        """Which candidates share a word: (B, K) bool."""
        return (self.items[..., 0] > 0) & (self.ids >= 0)

    @property
    def matched(self) -> Tensor:
        """Which requests have an item that shares a word: (B,) bool."""
        return self.named.any(1)

    def take(self, rows: Tensor) -> WordMatches:
        """Some requests."""
        return WordMatches(*(getattr(self, part.name)[rows] for part in fields(self)))


@dataclass(frozen=True)
class WordMixture:
    """What makes an item the one that is named, and the gate.

    ``weights`` (2 x len(ITEM) + len(GATE),): for queries of which no category has all words, for the others, the gate.
    """

    weights: Tensor

    def scores(self, matches: WordMatches) -> Tensor:
        """Log-probabilities (B, K); of a request without a common word those of dense retrieval."""
        return _scores(self.weights, matches)

    def rank(self, matches: WordMatches) -> tuple[Tensor, Tensor]:
        """Ids (B, K), -1 where empty, and scores, best first; of equal scores the lower id."""
        scores = self.scores(matches).masked_fill(matches.ids < 0, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return matches.ids.gather(1, order), scores

    @classmethod
    def fit(cls, parts: Sequence[tuple[WordMatches, Tensor]], held: Sequence[Tensor]) -> WordMixture | None:
        """The mixture that makes the targets of searches most probable; None where it does not help or they are few.

        ``parts``: matches and which candidate is the target (B, K), one in each row. ``held`` (B,) bool: searches that
        are not fitted but decide, by the mean reciprocal rank of their targets, whether the mixture is used at all.
        """
        fitted = [(matches.take(~out), hit[~out]) for (matches, hit), out in zip(parts, held, strict=True)]
        judged = [(matches.take(out), hit[out]) for (matches, hit), out in zip(parts, held, strict=True)]
        if min(sum(len(hit) for _, hit in some) for some in (fitted, judged)) < MIN_SEARCHES // 2:
            return None
        scale = torch.tensor(SCALE)

        def loss(weights: Tensor) -> Tensor:
            logs = torch.cat([_scores(weights * scale, matches)[hit] for matches, hit in fitted])
            usual, of_category = weights[: 2 * len(ITEM)].split(len(ITEM))
            apart = APART * (of_category - usual).square().sum() / len(logs)
            return RIDGE * weights.square().sum() + apart - logs.mean()

        mixture = cls(fit_weights(torch.tensor(START) / scale, loss) * scale)
        before = sum(float(_reciprocal_ranks(matches.dense, matches, hit).sum()) for matches, hit in judged)
        after = sum(float(_reciprocal_ranks(mixture.scores(matches), matches, hit).sum()) for matches, hit in judged)
        return mixture if after > before else None


def _scores(weights: Tensor, matches: WordMatches) -> Tensor:
    live = matches.named
    gate = matches.gate @ weights[2 * len(ITEM) :]
    gate = torch.where(matches.matched, gate, -torch.inf)[:, None]  # no word in common: dense retrieval alone
    in_category = matches.gate[:, GATE.index("whole_category"), None] > 0
    said, of_category = (matches.items @ part for part in weights[: 2 * len(ITEM)].split(len(ITEM)))
    said = torch.where(in_category, of_category, said)
    named = said.masked_fill(~live, NEVER).log_softmax(1)
    return torch.where(
        matches.matched[:, None],
        torch.logaddexp(
            F.logsigmoid(-gate.clamp(min=NEVER)) + matches.dense, F.logsigmoid(gate.clamp(min=NEVER)) + named
        ),
        matches.dense,
    )


def _reciprocal_ranks(scores: Tensor, matches: WordMatches, hit: Tensor) -> Tensor:
    """One over the rank of the target of each request: (B,)."""
    scores = scores.masked_fill(matches.ids < 0, -torch.inf)
    return 1 / (1 + (scores > scores[hit][:, None]).sum(1))
