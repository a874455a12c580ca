"""The baselines' rows of the results table: tuned simple models, SASRec, and the classic stack over all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from genrec.artifacts.checkpoint import Arrays
from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.data.heldback import held_back
from genrec.evaluation.answerers import Scorer, query_texts, ranked_by_scores
from genrec.evaluation.baselines import DenseText, stack
from genrec.evaluation.baselines.search import BASELINES, chosen_settings, fitted, usable
from genrec.evaluation.search_protocols import last_text
from genrec.ranking.features import CandidateFeatures

log = logging.getLogger(__name__)
Lists = tuple[np.ndarray | None, np.ndarray | None]  # without already-had items, and with them
Keep = Callable[[str, Callable[[], Arrays]], Arrays]


def unkept(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Keeps nothing: makes the arrays."""
    return make()


@dataclass
class BaselineRow:
    """A model's lists: ``ranked`` without already-had items, ``raw`` with them (None for searches), both (N, K)."""

    model: str
    inputs: str
    ranked: np.ndarray
    raw: np.ndarray | None


class Baselines:
    """The baselines of a run, with settings chosen on validation; a fit's models are made once."""

    def __init__(self, run: Any, fits: bool = True):
        """``fits`` false leaves out what ``genrec train`` makes."""
        self.run, self.fits = run, fits
        self.names = list(run.config.evaluation.baselines)
        self.stacks: dict[tuple[str | None, bool], stack.Stack] = {}
        self._scorers: dict[tuple[int, bool], dict[str, tuple[str, Scorer]]] = {}

    @cached_property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """The settings of the tuned baselines, by name."""
        return chosen_settings(self.run, self.names)

    def notes(self) -> list[str]:
        """What the search on validation chose, a line per baseline."""
        return [
            f"{BASELINES[name][0]}, chosen on validation: {', '.join(f'{key} {value}' for key, value in best.items())}"
            for name, best in self.chosen.items()
        ]

    def scorers(self, last: int, searches: bool) -> dict[str, tuple[str, Scorer]]:
        """Inputs and scorer of each simple baseline fitted up to split ``last``, by the name of its row."""
        if (last, searches) not in self._scorers:
            self._scorers[last, searches] = dict(self._text(last) if searches else self._collaborative(last))
        return self._scorers[last, searches]

    def _collaborative(self, last: int) -> Iterator[tuple[str, tuple[str, Scorer]]]:
        for name in usable(self.names, self.run.dataset):
            model = fitted(name, self.chosen[name], self.run.dataset, last)
            yield BASELINES[name][0], ("ids", partial(_score, model))

    def _text(self, last: int) -> Iterator[tuple[str, tuple[str, Scorer]]]:
        if "bm25" in self.names:
            yield "BM25", ("text", lambda chunk: self.run.lexical.score(query_texts(chunk)))
        if "text" in self.names:
            dense = DenseText().fit(self.run.ids.catalogue.text.cpu().numpy())
            yield "dense text", ("text", lambda chunk: dense.score(self.run.ids.encoder.encode(query_texts(chunk))))

    def rows(
        self, requests: Requests, kind: str | None, fit: str, k: int, keep: Keep = unkept
    ) -> Iterator[BaselineRow]:
        """The rows for requests of a query ``kind`` (None: recommendations), fitted on ``fit``.

        ``keep`` makes or reads the lists of a row, see ``StageCheckpoint.part``.
        """
        last, searches = VALID if fit == "train+valid" else TRAIN, kind is not None
        scorers = dict(self.scorers(last, searches))
        if self.fits and not searches:
            scorers |= {name: ("ids", scorer) for name, scorer in self.run.baseline_scorers(fit).items()}
        for name, (inputs, scorer) in scorers.items():
            lists = partial(ranked_by_scores, scorer, requests, k, self.run.dataset.n_items, not searches)
            yield from kept_row(keep, name, inputs, lists)
        if "stack" in self.names and stack.installed():
            for networked in (False, True)[: 1 + (self.fits and not searches)]:
                name = stack.NETWORKED if networked else stack.NAME
                stacked = partial(self._stack, requests, kind, last, k, networked)
                yield from kept_row(keep, name, "ids + text + features", stacked)

    def _stack(self, requests: Requests, kind: str | None, last: int, k: int, networked: bool) -> Lists:
        """The stack's lists; ``networked`` adds our network's retrieval scores to its sources (recommendations)."""
        if (kind, networked) not in self.stacks:
            valid = self.run.dataset.requests("valid", kind)
            if len(valid) < stack.MIN_REQUESTS:
                return None, None
            self.stacks[kind, networked] = self._fit_stack(valid, kind, networked)
        trees = self.stacks[kind, networked]
        if not trees.trees:
            return None, None
        sources = self._sources(last, kind is not None, networked)
        raw = trees.rank(sources, requests, k, exclude_seen=False) if kind is None else None
        return trees.rank(sources, requests, k), raw

    def _fit_stack(self, valid: Requests, kind: str | None, networked: bool) -> stack.Stack:
        """The stack; for recommendations it learns from training requests too, as our re-ranker does."""
        seed, sources = self.run.config.seed, self._sources(TRAIN, kind is not None, networked)
        if kind is not None:
            return stack.Stack(seed).fit(sources, valid)
        if not networked:
            return stack.Stack(seed).fit(sources, valid, self._held_examples)
        base = stack.Stack(seed).fit_examples(self._held_examples) if self._held_examples else None
        return stack.Stack(seed, base).fit(sources, valid)

    @cached_property
    def _held_examples(self) -> list[stack.Example]:
        """Training requests with the sources, fitted on logs that lack the events of those requests."""
        text, config = self.run.ids.catalogue.text.cpu().numpy(), self.run.config
        made: list[stack.Example] = []
        for part, requests in held_back(self.run.dataset, stack.FIT_REQUESTS, config.seed):
            scorers: dict[str, Scorer] = {
                BASELINES[name][0]: partial(_score, fitted(name, self.chosen[name], part, TRAIN))
                for name in usable(self.names, part)
            }
            scorers["text of the last event"] = lambda chunk: last_text(chunk, text)
            features = CandidateFeatures.build(part, text, TRAIN, collaborative=False)
            made += stack.examples(stack.Sources(scorers, features, config.model.request_time), requests)
        return made

    def _sources(self, last: int, searches: bool, networked: bool) -> stack.Sources:
        text = self.run.ids.catalogue.text.cpu().numpy()
        scorers = {name: scorer for name, (_, scorer) in self.scorers(last, False).items()}
        if searches:
            scorers |= {name: scorer for name, (_, scorer) in self.scorers(last, True).items()}
        else:
            scorers["text of the last event"] = lambda chunk: last_text(chunk, text)
        if networked:
            scorers["our retrieval"] = self.run.network_scorer("model", "train+valid" if last == VALID else "train")
        features = CandidateFeatures.build(self.run.dataset, text, last, collaborative=False)
        return stack.Sources(scorers, features, self.run.config.model.request_time)


def kept_row(keep: Keep, name: str, inputs: str, make: Callable[[], Lists]) -> Iterator[BaselineRow]:
    """A row whose lists are made or read by ``keep``; none where there are no lists."""
    arrays = keep(
        name, lambda: {key: part for key, part in zip(("ranked", "raw"), make(), strict=True) if part is not None}
    )
    if "ranked" in arrays:
        yield BaselineRow(name, inputs, arrays["ranked"], arrays.get("raw"))


def _score(model: Any, requests: Requests) -> np.ndarray:
    return model.score(requests.histories)
