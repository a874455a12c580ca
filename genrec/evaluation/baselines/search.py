"""A small search for each baseline's settings: fitted on train, chosen by nDCG@10 on validation requests."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

import numpy as np

from genrec.artifacts.folders import atomic_folder, fingerprint, is_current, read_json, write_json
from genrec.data.dataset import TRAIN, Dataset, Requests
from genrec.errors import UserError
from genrec.evaluation.baselines.item_knn import ItemKNN
from genrec.evaluation.baselines.popularity import Popularity
from genrec.evaluation.baselines.transitions import Transitions
from genrec.evaluation.metrics import per_request_metrics, top_k
from genrec.retrieval.als import ImplicitALS
from genrec.retrieval.ease import EASE, MAX_ITEMS

log = logging.getLogger(__name__)
VERSION, KIND = 2, "baselines"
REQUESTS = 3000  # validation requests of a search
CELLS = 1 << 24  # scores held at once
LARGE = 1 << 13  # items from which a model with a ``LARGE_SPACE`` searches that
BASELINES: dict[str, tuple[str, Any]] = {
    "popularity": ("popularity", Popularity),
    "itemknn": ("ItemKNN", ItemKNN),
    "cooccurrence": ("co-occurrence + transitions", Transitions),
    "ease": ("EASE^R", EASE),
    "als": ("implicit ALS", ImplicitALS),
}


def chunk_size(n_items: int) -> int:
    """Requests whose scores over the whole catalogue are held at once."""
    return max(1, min(512, CELLS // max(n_items, 1)))


def quality(model: Any, requests: Requests, n_items: int) -> float:
    """nDCG@10 of a fitted baseline, already-had items removed."""
    gains, size = [], chunk_size(n_items)
    for start in range(0, len(requests), size):
        chunk = requests.take(np.arange(start, min(start + size, len(requests))))
        ranked = np.asarray(top_k(model.score(chunk.histories), 10, chunk.histories)[0])
        gains.append(per_request_metrics(ranked, chunk.targets, [10])["ndcg@10"])
    return float(np.concatenate(gains).mean())


def tuned(kind: Any, dataset: Dataset, requests: Requests) -> dict[str, Any]:
    """The best settings of a baseline: one after the other, each with the best values of those before it.

    Settings are tried in the order of ``kind.SPACE``, above ``LARGE`` items those of ``kind.LARGE_SPACE`` where a fit
    takes long. ``decay`` applies to a request's history alone, so it needs no new fit.
    """
    train, times, n_items = dataset.histories(TRAIN), event_times(dataset, TRAIN), dataset.n_items
    chosen: dict[str, Any] = {}
    best_model = kind().fit(train, n_items, times)
    best = quality(best_model, requests, n_items)
    space = getattr(kind, "LARGE_SPACE", None) if n_items > LARGE else None
    for name, values in (space or kind.SPACE).items():
        for value in values:
            if value == getattr(best_model, name):
                continue
            if name == "decay":
                model = copy.copy(best_model)
                model.decay = value
            else:
                model = kind(**{key: getattr(best_model, key) for key in kind.SPACE} | {name: value})
                model.fit(train, n_items, times)
            score = quality(model, requests, n_items)
            if score > best:
                best, best_model = score, model
    chosen = {name: getattr(best_model, name) for name in kind.SPACE}
    return chosen | {"valid_ndcg@10": round(best, 4)}


def event_times(dataset: Dataset, last: int) -> np.ndarray:
    """The times of the events of ``dataset.histories(last)``: (n_events,)."""
    return np.asarray(dataset.timestamps)[np.asarray(dataset.split) <= last]


def usable(names: list[str], dataset: Dataset) -> list[str]:
    """The tuned baselines among ``names`` that this catalogue allows."""
    return [name for name in BASELINES if name in names and (name != "ease" or dataset.n_items <= MAX_ITEMS)]


def chosen_settings(run: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """The settings of each baseline, searched once for a run and kept in ``RUN/baselines``."""
    dataset, names = run.dataset, usable(names, run.dataset)
    target = run.folder / "baselines"
    key = fingerprint(VERSION, dataset.manifest["key"], names, run.config.seed)
    if is_current(target, KIND, key):
        return read_json(target / "chosen.json")
    requests = dataset.requests("valid")
    if not len(requests):
        return {name: {} for name in names}
    if len(requests) > REQUESTS:
        draw = np.random.default_rng(run.config.seed)
        requests = requests.take(np.sort(draw.permutation(len(requests))[:REQUESTS]))
    chosen = {}
    for name in names:
        begin = time.monotonic()
        label, kind = BASELINES[name]
        chosen[name] = tuned(kind, dataset, requests)
        text = ", ".join(f"{key} {value}" for key, value in chosen[name].items())
        log.info("baseline %s: %s (%.0f s)", label, text, time.monotonic() - begin)
    with atomic_folder(target, KIND, key) as folder:
        write_json(folder / "chosen.json", chosen)
    return chosen


def fitted(name: str, settings: dict[str, Any], dataset: Dataset, last: int) -> Any:
    """A baseline with its chosen settings, fitted up to split ``last``."""
    if name not in BASELINES:
        raise UserError(f"'{name}' is not one of {', '.join(BASELINES)}")
    kind = BASELINES[name][1]
    own = {key: value for key, value in settings.items() if key in kind.SPACE}
    return kind(**own).fit(dataset.histories(last), dataset.n_items, event_times(dataset, last))
