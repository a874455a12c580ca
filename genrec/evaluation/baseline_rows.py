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
from genrec.data.heldback import held_back, held_back_searches
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
        self.names = [name for name in run.config.evaluation.baselines if fits or name != "sasrec"]
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
        if "sasrec" in self.names and not searches:
            scorers["SASRec, cross-entropy"] = "ids", self.run.network_scorer("sasrec", fit)
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
        """The stack; it learns from training requests too, as our re-rankers do."""
        seed, searches = self.run.config.seed, kind is not None
        sources, held = self._sources(TRAIN, searches, networked), self._held_examples[searches]
        if not networked:
            return stack.Stack(seed).fit(sources, valid, held)
        return stack.Stack(seed, stack.Stack(seed).fit_examples(held) if held else None).fit(sources, valid)

    @cached_property
    def _held_examples(self) -> dict[bool, list[stack.Example]]:
        """Training recommendations (False) and searches (True), with sources fitted on logs without their events."""
        config, made = self.run.config, dict[bool, list[stack.Example]]({False: [], True: []})
        left = stack.FIT_REQUESTS
        for part, requests in held_back(self.run.dataset, stack.FIT_REQUESTS, config.seed):
            models = {
                BASELINES[name][0]: partial(_score, fitted(name, self.chosen[name], part, TRAIN))
                for name in usable(self.names, part)
            }
            features = CandidateFeatures.build(part, self._item_text, TRAIN, collaborative=False)
            searched = held_back_searches(part, left, config.seed)
            left -= len(searched)
            for searches, some in ((False, requests), (True, searched)):
                scorers = models | self._text_scorers(TRAIN, searches)
                made[searches] += stack.examples(stack.Sources(scorers, features, config.model.request_time), some)
        return made

    @cached_property
    def _item_text(self) -> np.ndarray:
        return self.run.ids.catalogue.text.cpu().numpy()

    def _text_scorers(self, last: int, searches: bool) -> dict[str, Scorer]:
        """The stack's sources that read text: those of a search read its query, else the last event's is read."""
        if searches:
            return {name: scorer for name, (_, scorer) in self.scorers(last, True).items()}
        return {"text of the last event": partial(_last_text, self._item_text)}

    def _sources(self, last: int, searches: bool, networked: bool) -> stack.Sources:
        scorers = {name: scorer for name, (_, scorer) in self.scorers(last, False).items()}
        scorers |= self._text_scorers(last, searches)
        if networked:
            scorers["our retrieval"] = self.run.network_scorer("model", "train+valid" if last == VALID else "train")
        features = CandidateFeatures.build(self.run.dataset, self._item_text, last, collaborative=False)
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


def _last_text(text: np.ndarray, requests: Requests) -> np.ndarray:
    return last_text(requests, text)
