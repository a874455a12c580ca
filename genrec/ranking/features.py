"""Candidate features from counts: the user's history, co-occurrence, and item attributes.

They use events up to the fit's split (training, or training + validation) and the request's own history, never its
future: popularity in a time window counts events strictly before the request's reference time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.data.dataset import Dataset
from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.ranking.item_facts import ItemFacts
from genrec.retrieval.collaborative import EaseWeights, ItemFactors
from genrec.retrieval.cooccurrence import CooccurrenceTransition
from genrec.retrieval.products import pair_products
from genrec.retrieval.query_items import QueryItemCounts
from genrec.retrieval.recent import RecentPopularity
from genrec.retrieval.sources import SparseScores
from genrec.retrieval.sparse import product
from genrec.retrieval.windowed import WindowedTransitions

DECAY = 0.6  # weight of an event by its age in events, as in the co-occurrence model
RECENT_EVENTS = 20  # events of a history that are compared with a candidate
WINDOWS = (100, 20)  # popularity windows: this fraction of the log's time span
_FLOOR = 1e-3  # added before the logarithm of sparse scores
ROOM = 1 << 23  # numbers gathered at a time

TITLE_FEATURES = ("title_words", "title_order", "title_neighbours", "title_whole")
FACET_FEATURES = ("category_words", "category_named", "category_levels", "category_whole", "facets_named")
RELATED_FEATURES = ("longer_queries", "shorter_queries")
WORD_FEATURES = (
    "lexical",
    "matches_words",
    "lexical_share",
    *TITLE_FEATURES,
    *FACET_FEATURES,
    "popular_match",
    "query_words",
    "near_matches",
)
SOURCE_FEATURES = (
    "generated",
    "in_beam",
    "retrieved",
    "cooccurrence",
    "cooccurs",
    "transition",
    "transits",
    "text",
    *WORD_FEATURES,
    "query_hits",
    "has_query_hits",
    *RELATED_FEATURES,
)
ITEM_FEATURES = ("popularity", "short_popularity", "long_popularity", "age", "unborn")
HISTORY_FEATURES = (
    "last_cooccurrence",
    "last_transition",
    "next_transition",
    "previous_transition",
    "all_cooccurrence",
    "seen",
    "seen_recently",
    "brand_share",
    "brand_last",
    "category_share",
    "category_last",
    "path_share",
    "path_last",
    "price_ratio",
    "price_distance",
    "price_known",
    "profile_text",
    "last_text",
    "length",
)
RANK_FEATURES = (
    "retrieved_rank",
    "cooccurrence_rank",
    "windowed",
    "windowed_rank",
    "ease",
    "ease_rank",
    "als",
    "als_rank",
    "recent",
    "recent_rank",
)
HEAD_FEATURES = ("ranking",)  # the ranking head's logit, 0 without a head
FEATURES = SOURCE_FEATURES + ITEM_FEATURES + HISTORY_FEATURES + RANK_FEATURES + HEAD_FEATURES


class CandidateFeatures:
    """Counts over the events of a fit, and the features they give a candidate."""

    def __init__(
        self,
        cooccurrence: CooccurrenceTransition,
        facts: ItemFacts,
        keys: np.ndarray,
        origin: int,
        span: int,
        query_items: QueryItemCounts | None = None,
        windowed: WindowedTransitions | None = None,
        ease: EaseWeights | None = None,
        factors: ItemFactors | None = None,
        recent: RecentPopularity | None = None,
    ):
        """``keys`` (n_events,) int64, sorted: item x (span + 1) + seconds since ``origin``, one per event.

        ``query_items``: counts of the items chosen after each query. Without ``windowed`` transitions, ``ease``,
        ``factors`` or ``recent`` popularity their features are constant.
        """
        self.query_items, self.windowed, self.ease, self.factors = query_items, windowed, ease, factors
        self.recent = recent
        self.cooccurrence, self.facts, self.keys, self.origin, self.span = cooccurrence, facts, keys, origin, span
        n_items = len(facts.brand)
        bounds = np.searchsorted(keys, np.arange(n_items + 1, dtype=np.int64) * (span + 1))
        self.counts = np.diff(bounds)
        first = np.full(n_items, span, np.int64)
        born = self.counts > 0
        first[born] = keys[bounds[:-1][born]] % (span + 1)
        self.first = first

    def grown(self, new: pl.DataFrame, text: np.ndarray) -> CandidateFeatures:
        """The features with ``new`` items behind the others, of which nothing was counted; ``text`` is that of all.

        Counts are shared: an event's key is item x (span + 1) + seconds, so new items change none.
        """
        grown = copy.copy(self)
        grown.facts = self.facts.grown(new, text)
        grown.counts = append_rows(self.counts, np.zeros(len(new), self.counts.dtype))
        grown.first = append_rows(self.first, np.full(len(new), self.span, np.int64))
        if self.factors is not None:
            grown.factors = self.factors.grown(len(new))
        return grown

    @classmethod
    def build(
        cls, dataset: Dataset, text: np.ndarray, last: int, transitions: str = "log", collaborative: bool = True
    ) -> CandidateFeatures:
        """Count all events up to split ``last``; without ``collaborative``, fit neither EASE^R nor ALS to them."""
        histories = dataset.histories(last)
        table = CooccurrenceTransition(transitions=transitions).fit(histories, dataset.n_items)
        known = np.flatnonzero(np.asarray(dataset.split) <= last)
        times, items = np.asarray(dataset.timestamps)[known], np.asarray(dataset.items)[known].astype(np.int64)
        origin = int(times.min()) if len(times) else 0
        span = int(times.max()) - origin if len(times) else 0
        keys = np.sort(items * (span + 1) + (times - origin))
        return cls(
            table,
            ItemFacts.from_table(dataset.item_table, text),
            keys,
            origin,
            span,
            QueryItemCounts.build(dataset, last),
            WindowedTransitions.fit(histories, dataset.n_items),
            EaseWeights.fit(histories, dataset.n_items) if collaborative else None,
            ItemFactors.fit(histories, dataset.n_items) if collaborative else None,
            RecentPopularity.fit(items, times, dataset.n_items),
        )

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back; the item facts come from the item table."""
        return {
            "event_keys": self.keys,
            "origin": np.asarray(self.origin, np.int64),
            "span": np.asarray(self.span, np.int64),
            **self.cooccurrence.state(),
            **(self.query_items.state() if self.query_items else {}),
            **{
                name: array
                for table in (self.windowed, self.ease, self.factors, self.recent)
                if table is not None
                for name, array in table.state().items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], facts: ItemFacts) -> CandidateFeatures:
        """The features that ``state`` describes."""
        if "event_keys" not in state:
            raise UserError("the candidate features lack event_keys; make them again (genrec train)")
        query_items = QueryItemCounts.from_state(state, len(facts.brand)) if "query_item_keys" in state else None
        return cls(
            CooccurrenceTransition.from_state(state),
            facts,
            state["event_keys"],
            int(state["origin"]),
            int(state["span"]),
            query_items,
            WindowedTransitions.from_state(state),
            EaseWeights.from_state(state),
            ItemFactors.from_state(state),
            RecentPopularity.from_state(state, len(facts.brand)),
        )

    def save(self, path: Path) -> None:
        """Write ``state()`` as an npz file at exactly ``path``."""
        arrays: dict[str, Any] = self.state()
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, facts: ItemFacts) -> CandidateFeatures:
        """Read what ``save`` wrote; nothing is unpickled."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls.from_state(dict(arrays), facts)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: not saved candidate features ({error}); make them again (genrec train)"
            ) from error

    def window_counts(self, items: np.ndarray, until: np.ndarray, width: int) -> np.ndarray:
        """Event counts of ``items`` (B, K) in the ``width`` seconds before the epoch seconds ``until`` (B,): (B, K)."""
        stop, n_items = np.clip(until - self.origin, 0, self.span + 1), len(self.counts)
        stops, row = np.unique(stop, return_inverse=True)
        every = len(stops) * n_items < items.size  # most requests are of the present: their windows are the same
        if every:
            stop, wanted = stops, np.arange(n_items)[None]
        else:
            wanted = items.astype(np.int64)
        base, stop = wanted * (self.span + 1), stop[:, None]
        begin = np.searchsorted(self.keys, base + np.clip(stop - width, 0, None))
        counts = np.searchsorted(self.keys, base + stop) - begin
        return counts[row[:, None], items] if every else counts

    def popularity(self, items: np.ndarray, until: np.ndarray) -> list[np.ndarray]:
        """The first two of ``item_features``: popularity, and that of the shortest window."""
        until = np.minimum(until, self.origin + self.span + 1)
        return [np.log1p(self.counts[items]), self._windowed(items, until, WINDOWS[0])]

    def _windowed(self, items: np.ndarray, until: np.ndarray, part: int) -> np.ndarray:
        """log(1 + events) of ``items`` (B, K) in the last of ``part`` equal parts of the log before ``until`` (B,)."""
        return np.log1p(self.window_counts(items, until, max(self.span // part, 1)))

    def item_features(self, items: np.ndarray, until: np.ndarray) -> list[np.ndarray]:
        """``ITEM_FEATURES`` of candidates (B, K) at reference times (B,). The log's end stands for every later time."""
        until = np.minimum(until, self.origin + self.span + 1)
        windows = [self._windowed(items, until, part) for part in WINDOWS]
        # Days, on a log scale; an item whose first event is later than the request has a negative age.
        age = ((until[:, None] - self.origin) - self.first[items]) / 86400.0
        return [np.log1p(self.counts[items]), *windows, np.sign(age) * np.log1p(np.abs(age)), age < 0]

    def fill(self, out: Tensor, first: int, items: np.ndarray, until: np.ndarray, histories: Histories) -> None:
        """Write ``ITEM_FEATURES`` and ``HISTORY_FEATURES`` of candidates (B, K) into ``out`` (B, K, F), on the host.

        The columns start at ``first``.
        Works on blocks of requests, which bounds the memory of the gathered text vectors.
        """
        step = max(ROOM // max(items.shape[1] * max(self.facts.text.shape[1], RECENT_EVENTS), 1), 1)
        for start in range(0, len(items), step):
            rows = slice(start, start + step)
            some, past = items[rows], histories.slice(start, start + step)
            columns = [*self.item_features(some, until[rows]), *self.history_features(some, past)]
            for column, values in enumerate(columns, first):
                out[rows, :, column] = torch.from_numpy(np.asarray(values, np.float32))

    def history_features(self, items: np.ndarray, histories: Histories) -> list[np.ndarray]:
        """``HISTORY_FEATURES`` of candidates (B, K)."""
        recent = _newest_first(histories, RECENT_EVENTS)
        live = recent >= 0
        weight = np.where(live, DECAY ** np.arange(recent.shape[1]), 0).astype(np.float32)
        weight /= np.maximum(weight.sum(1, keepdims=True), 1e-9)
        facts = self.facts
        same = [_same(codes, recent, live, items) for codes in (facts.brand, facts.category, facts.path)]
        fractions = [part for match in same for part in ((match * weight[:, None, :]).sum(2), match[:, :, 0])]
        text = facts.text[recent].astype(np.float32) * live[..., None]
        profile = (text * weight[..., None]).sum(1)
        again = (recent[:, None, :] == items[:, :, None]) & live[:, None, :]
        return [
            *self._pair_features(items, histories),
            again.any(2),
            (again * weight[:, None, :]).sum(2),
            *fractions,
            *_price_features(facts.price, recent, live, weight, items),
            *self._text_products(np.stack([profile, text[:, 0]]), items),
            np.repeat(np.log1p(histories.lengths)[:, None], items.shape[1], axis=1),
        ]

    def _text_products(self, vectors: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Products of text vectors (P, B, dim) with those of candidates (B, K): (P, B, K)."""
        kinds, batch, dim = vectors.shape
        left, text = torch.from_numpy(vectors).view(-1, dim), self.facts.text
        ids = torch.from_numpy(items).repeat(kinds, 1)
        if text.dtype == np.float32 and text.flags.writeable:
            return pair_products(left, torch.from_numpy(text), ids).view(kinds, batch, -1).numpy()
        return np.einsum("pbd,bkd->pbk", vectors, text[items].astype(np.float32))

    def _pair_features(self, items: np.ndarray, histories: Histories) -> list[np.ndarray]:
        """Co-occurrence and transition features of candidates (B, K), as the first five of ``HISTORY_FEATURES``."""
        n_items = len(self.facts.brand)
        similar, following, (forward, backward) = self.cooccurrence.similar, self.cooccurrence.following, self._moves
        assert similar is not None and following is not None
        last, alike = histories.last_n(1).to_csr(n_items), histories.to_csr(n_items)
        decayed = histories.to_csr(n_items, weights=lambda ages: DECAY ** ages.astype(np.float64))

        def scores(rows: sp.csr_matrix, table: sp.csr_matrix) -> np.ndarray:
            return SparseScores(product(rows, table)).at(items)

        return [
            np.log(scores(last, similar) + _FLOOR),
            scores(last, following),
            scores(decayed, forward),
            scores(decayed, backward),
            np.log(scores(alike, similar) + _FLOOR),
        ]

    @cached_property
    def _moves(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """log(1 + count) of forward transitions F, and F^T.

        following = F / 2 + F^T / 4, so F = (8 following - 4 following^T) / 3.
        Cached as one value, so that concurrent threads see both matrices or neither.
        """
        following = self.cooccurrence.following
        assert following is not None
        moves = ((8 / 3) * following - (4 / 3) * following.T).tocsr().astype(np.float32)
        moves.data[np.abs(moves.data) < 1e-4] = 0
        moves.eliminate_zeros()
        return moves, moves.T.tocsr()


def log_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """A sparse score as two features: its logarithm above a floor, and whether it is positive."""
    return (scores + _FLOOR).log(), (scores > 0).float()


def to_tensor(columns: list[np.ndarray], device: torch.device) -> Tensor:
    """(B, K) columns as one (B, K, F) float32 tensor."""
    return torch.from_numpy(np.stack([np.asarray(column, np.float32) for column in columns], axis=-1)).to(device)


def log_rank(scores: Tensor, live: Tensor) -> Tensor:
    """log(1 + how many live candidates of the row score higher): (B, K)."""
    ordered = scores.masked_fill(~live, -torch.inf).sort(dim=1).values
    above = scores.shape[1] - torch.searchsorted(ordered, scores.contiguous(), right=True)
    return above.clamp(min=0).float().log1p()


def search_features(known: Tensor, generated: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Two features (B, K): the log-probability in the search, and whether the search found the candidate.

    A candidate that the search did not find gets the row's lowest log-probability minus 1.
    """
    if generated is None:
        return torch.full(known.shape, -1.0, device=known.device), torch.zeros(known.shape, device=known.device)
    ids, scores = generated
    live = ids >= 0
    lowest = torch.where(live, scores, torch.inf).min(1, keepdim=True).values
    floor = torch.where(lowest.isfinite(), lowest, 0.0)
    column = torch.searchsorted(known, ids.clamp(min=0)).clamp_(max=known.shape[1] - 1)
    beam = torch.full(known.shape, -torch.inf, device=known.device)
    beam.scatter_reduce_(1, column, scores.masked_fill(~live, -torch.inf), "amax")
    return torch.where(beam.isfinite(), beam, floor - 1), beam.isfinite().float()


def _newest_first(histories: Histories, width: int) -> np.ndarray:
    """(B, width) item ids, the newest in column 0, -1 where a history is shorter."""
    newest = histories.last_n(width)
    table = np.full((len(histories), width), -1, np.int64)
    table[newest.rows, newest.ages] = newest.items
    return table


def _same(codes: np.ndarray, recent: np.ndarray, live: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether a candidate has a known code that the past event has too: (B, K, T) bool."""
    mine = codes[items][:, :, None]
    return (mine == codes[recent][:, None, :]) & live[:, None, :] & (mine >= 0)


def _price_features(
    price: np.ndarray, recent: np.ndarray, live: np.ndarray, weight: np.ndarray, items: np.ndarray
) -> list[np.ndarray]:
    """Log ratio to the user's usual price, its absolute value, and whether both prices are known: (B, K) each."""
    past = np.where(live, price[recent], np.nan)
    known = ~np.isnan(past)
    mass = np.where(known, weight, 0).sum(1)
    usual = np.where(known, weight * np.nan_to_num(past), 0).sum(1) / np.maximum(mass, 1e-9)
    mine = price[items]
    both = ~np.isnan(mine) & (mass > 0)[:, None]
    ratio = np.where(both, np.nan_to_num(mine) - usual[:, None], 0)
    return [ratio, np.abs(ratio), both]
