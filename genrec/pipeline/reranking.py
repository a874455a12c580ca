"""Fit the re-rankers of a run: of counts on training requests, and of counts and the network on validation requests."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from genrec.artifacts.folders import atomic_folder, is_current, write_json
from genrec.generation.options import SearchOptions
from genrec.progress import Progress
from genrec.ranking.candidates import Candidates
from genrec.ranking.counted import counted_lists
from genrec.ranking.features import FACET_FEATURES, FEATURES, RELATED_FEATURES, TITLE_FEATURES
from genrec.ranking.ranker import Ranker
from genrec.ranking.reranker import Reranker, hold_out, with_hits
from genrec.ranking.word_features import WordFeatures
from genrec.ranking.word_mixture import GATE, ITEM, WordMatches, WordMixture
from genrec.runs.run import TASKS, Run
from genrec.runs.stages import RERANKER_KIND, reranker_key

log = logging.getLogger(__name__)
MAX_REQUESTS = {"recommendation": 25_000, "search": 10_000}
MAX_UPDATE_REQUESTS = {"recommendation": 4_000, "search": 2_000}
MAX_TRAINING_REQUESTS = 20_000
POPULARITY = ("popularity", "short_popularity")  # what the word mixture reads of it


def fit_reranker(run: Run, present: dict[str, Reranker] | None = None) -> None:
    """Fit one ranking function for recommendations and one for searches, on validation requests.

    That for recommendations reads the score of a ranking function of counts, fitted on training requests.
    ``present``: those of the run that is updated, from whose weights the fit starts; it then reads fewer requests.
    """
    target, key = run.folder / "reranker", reranker_key(run.folder, run.config)
    if is_current(target, RERANKER_KIND, key):
        return
    ranker = run.ranker("train", fused=False)
    rng = np.random.default_rng(run.config.seed)
    limits = MAX_REQUESTS if present is None else MAX_UPDATE_REQUESTS
    kinds: dict[str, list[str | None]] = dict(zip(TASKS, ([None], list(run.dataset.query_kinds)), strict=True))
    rerankers = {}
    for task, tasks in kinds.items():
        base = _fit_counts(run, ranker) if present is None and task == "recommendation" else None
        parts, queries = [], []
        for kind in tasks:
            requests = run.dataset.requests("valid", kind)
            keep = rng.permutation(len(requests))[: limits[task] // max(len(tasks), 1)]
            # In a log of searches it shows whether people search again for what they had.
            options = SearchOptions(exclude_seen=kind != "logged")
            with Progress(f"candidates for the re-ranker, {kind or task}", len(keep)) as progress:
                for _, chunk, found in ranker.candidates(requests.take(keep), options, progress.advance):
                    targets = torch.from_numpy(chunk.targets.astype(np.int64)).to(found.union()[0].device)
                    rows = with_hits(found, targets)
                    parts.append((found, targets[rows]))
                    queries.append(torch.from_numpy(chunk.request_queries.astype(np.int64))[rows.cpu()])
        rerankers[task] = Reranker.fit(parts, run.config.seed, queries, present[task] if present else None, base)
        _report(task, rerankers[task], parts)
        if task == "search":
            rerankers[task] = replace(rerankers[task], mixture=fit_mixture(parts, queries, run.config.seed))
    with atomic_folder(target, RERANKER_KIND, key) as folder:
        for task, reranker in rerankers.items():
            save_file(reranker.state(), folder / f"{task}.safetensors")
        write_json(folder / "weights.json", {task: reranker.importance() for task, reranker in rerankers.items()})


def fit_mixture(parts: list[tuple[Candidates, Tensor]], queries: list[Tensor], seed: int) -> WordMixture | None:
    """What mixes words into the retrieval of searches, fitted on the lists ``parts`` of requests with ``queries``."""
    if not parts:
        return None
    query = torch.cat(queries)
    order = torch.randperm(len(query), generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(len(query), dtype=torch.bool)
    out[hold_out(order, query)[1]] = True
    lists = []
    for found, targets in parts:
        ids, features = (part.cpu() for part in found.union())
        matches = mixture_inputs(ids, features)
        lists.append((matches, (ids == targets.cpu()[:, None]) & (ids >= 0)))
    mixture = WordMixture.fit(lists, out.split([len(targets) for _, targets in parts]))
    if mixture is None:
        log.info("retrieval of searches: words add nothing")
    else:
        within = (f"{name} in category" for name in ITEM)
        weights = ", ".join(
            f"{name} {value:.2f}" for name, value in zip((*ITEM, *within, *GATE), mixture.weights.tolist(), strict=True)
        )
        log.info("retrieval of searches: words mixed in; %s", weights)
    return mixture


def mixture_inputs(ids: Tensor, features: Tensor) -> WordMatches:
    """What the mixture reads of candidates (B, K) with their features (B, K, len(FEATURES))."""
    column = {name: features[..., index] for index, name in enumerate(FEATURES)}
    title, facets, related, popularity = (
        torch.stack([column[name] for name in names], dim=-1)
        for names in (TITLE_FEATURES, FACET_FEATURES, RELATED_FEATURES, POPULARITY)
    )
    near, words = column["near_matches"][:, 0], column["query_words"][:, 0]
    said = WordFeatures(column["lexical"], column["lexical_share"], title, facets, near, words)
    return WordMatches.of(ids, column["retrieved"], said, related, popularity)


def _fit_counts(run: Run, ranker: Ranker) -> Reranker | None:
    """The ranking function of counts; None where no training request has its target among the candidates."""
    text = run.ids.catalogue.text.cpu().numpy()
    with Progress("candidates for the re-ranker, training requests", MAX_TRAINING_REQUESTS) as progress:
        parts = list(counted_lists(ranker, run.dataset, text, MAX_TRAINING_REQUESTS, run.config.seed, progress.advance))
    reranker = Reranker.fit_counts(parts, run.config.seed)
    if reranker is not None:
        _report("training requests", reranker, parts)
    return reranker


def _report(task: str, reranker: Reranker, parts: list[tuple[Candidates, Tensor]]) -> None:
    """Log what was fitted."""
    lists, form = sum(len(targets) for _, targets in parts), "linear"
    if reranker.network is not None:
        form += " + network"
    largest = sorted(reranker.importance().items(), key=lambda pair: -abs(pair[1]))[:6]
    weights = ", ".join(f"{name} {value:.2f}" for name, value in largest)
    log.info("re-ranker: %s, %s, from %d lists; largest linear weights %s", task, form, lists, weights)
