"""``genrec update``: newer days are added to a trained run, and a gate decides whether the updated model replaces it.

The update is built next to the run, in ``RUN.update``: the log with the new days, the same ids and codes with new items
appended, and a network that starts from the present weights and trains a configured number of steps on new and replayed
events. The last day of the log ("yesterday") is held out: on it the present and the updated model answer the same
requests. Only if the gate accepts, ``RUN.update`` replaces the run, which is kept as ``RUN.previous``.
A rejected or interrupted update leaves the run unchanged; an interrupted update is resumed.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from genrec.artifacts.folders import MANIFEST, atomic_folder, is_current, open_artifact, read_json, write_json
from genrec.config.load import to_dict
from genrec.config.schema import Config
from genrec.data.dataset import Requests
from genrec.data.prepare.pipeline import prepare
from genrec.errors import UserError
from genrec.evaluation.metrics import coverage, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.model.network import GenerativeRecommender
from genrec.pipeline.stages import count_candidate_features, fit_model_and_reranker
from genrec.preference.acceptance import GateDecision, Measured, decide
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run
from genrec.runs.stages import RERANKER_KIND, model_fits, reranker_key
from genrec.semantic_ids.tokenize import KIND as IDS_KIND
from genrec.semantic_ids.tokenize import tokenize, tokenize_key
from genrec.training.plan import WarmStart

log = logging.getLogger(__name__)
STEPS, REPLAY = 200, 0.5
DAY = 86_400
K = 10
REPORT = "update.json"


@dataclass
class UpdateReport:
    """The gate's decision, the drift of the codes, numbers of new events, users and items, and seconds of each part."""

    decision: GateDecision
    drift: dict
    rebuilt_codes: bool
    events: int
    users: int
    items: int
    seconds: dict[str, float]


def update(folder: str | Path, new_log: str | Path, steps: int = STEPS, replay: float = REPLAY) -> UpdateReport:
    """Add ``new_log`` to the run at ``folder``; the updated run replaces it if the gate accepts.

    ``steps`` optimiser steps each for backbone and decoder, of whose windows the fraction ``replay`` is older than the
    new log. Raises ``UserError`` where the new log adds nothing, or does not fit the run.
    """
    folder, added = Path(folder), Path(new_log).resolve()
    finish_swap(folder)
    if not added.exists():
        raise UserError(f"--log: {added} does not exist")
    if steps < 1 or not 0 <= replay < 1:
        raise UserError(f"--steps must be at least 1 and --replay from 0 to below 1, not {steps} and {replay}")
    run, seconds = Run.open(folder), _Clock()
    if str(added) in run.config.data.append:
        raise UserError(f"--log: {added} is part of {folder} already")
    fitted_on = run.default_fit()
    present = run.ranker(fitted_on)
    if not isinstance(present.generator.network, GenerativeRecommender):
        raise UserError(f"{folder} holds no network that can be updated")
    candidate = _prepare(run, added)
    data, old = candidate.dataset, run.dataset
    seconds.lap("prepare")
    drift = _tokenize(run, candidate)
    seconds.lap("tokenize")
    if drift["retokenize"]:
        log.info("update: the codes no longer fit (%s): they are rebuilt, and the model with them", drift["reasons"])
        fit_model_and_reranker(candidate)
    else:
        since = int(np.asarray(old.timestamps).max()) + 1
        _train(run, candidate, WarmStart(present.generator.network, since, steps, replay), fitted_on)
    seconds.lap("train")
    decision = _decide(run, candidate, present)
    seconds.lap("gate")
    grown = len(data.items) - len(old.items), data.n_users - old.n_users, data.n_items - old.n_items
    report = UpdateReport(decision, drift, bool(drift["retokenize"]), *grown, seconds.laps)
    write_json(candidate.folder / REPORT, asdict(report))
    log.info("update: %s: %s", "accepted" if decision.kept else "REFUSED", "; ".join(decision.reasons))
    if decision.kept:
        _swap(folder)
    else:
        write_json(folder / "update_refused.json", asdict(report))
    return report


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 2), now


def _beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.{name}")


def _prepare(run: Run, added: Path) -> Run:
    """The candidate run with the longer log; ids stay, and yesterday is held out."""
    folder = _beside(run.folder, "update")
    config = copy.deepcopy(run.config)
    config.data.append = [*config.data.append, str(added)]
    config.training.refit = False  # yesterday alone is held out
    config.evaluation.baselines = [name for name in config.evaluation.baselines if name != "sasrec"]
    if (folder / "config.json").is_file() and read_json(folder / "config.json")["data"]["append"] != config.data.append:
        shutil.rmtree(folder)  # the rest of an update with another log
    if not (folder / "dataset" / MANIFEST).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("dataset", ".dataset.parsed"):
            if (run.folder / name).is_dir():
                shutil.copytree(run.folder / name, folder / name, copy_function=_link)
        for file in run.folder.glob(".dataset.checksums.json"):
            shutil.copy2(file, folder / file.name)
    write_json(folder / "config.json", to_dict(config))
    prepare(config, folder / "dataset")
    candidate = Run(folder, config)
    _hold_out_yesterday(config, np.asarray(candidate.dataset.timestamps))
    prepare(config, folder / "dataset")
    candidate = Run(folder, config)
    candidate.save()
    _check_ids(run, candidate)
    return candidate


def _link(source: str, target: str) -> None:
    """Hard-link a file that is never changed in place; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _hold_out_yesterday(config: Config, times: np.ndarray) -> None:
    """Split by time: the events of the log's last day (UTC) are held out, its earlier half as validation data."""
    times = np.sort(times)
    yesterday = int(times[-1]) // DAY * DAY
    first = int(np.searchsorted(times, yesterday))
    if first == 0:
        raise UserError("update: the whole log is of one day; there is no earlier one to learn from")
    # The cut is the value of a rank: shares between two ranks name it safely.
    ranks = [first, first + (len(times) - first) // 2]
    shares = [(rank - 0.5) / max(len(times) - 1, 1) for rank in ranks]
    config.split.kind = "global-time"
    config.split.valid_share, config.split.test_share = shares[1] - shares[0], 1 - shares[1]


def _check_ids(run: Run, candidate: Run) -> None:
    """``UserError`` where the new log does not go on from the old one."""
    old, new = run.dataset, candidate.dataset
    if new.actions_chain != old.actions_chain:
        raise UserError(
            f"update: the new days have actions {', '.join(new.actions_chain)}, the run knows "
            f"{', '.join(old.actions_chain)}; train again with: genrec run CONFIG"
        )
    same_users = new.user_ids[: old.n_users].equals(old.user_ids)
    if not same_users or not new.item_table["item_id"][: old.n_items].equals(old.item_table["item_id"]):
        raise UserError(
            "update: the log is not the run's log with new days behind it; train again with: genrec run CONFIG"
        )
    if len(new.items) <= len(old.items):
        raise UserError("update: the new days add no event that is not known; check --log")


def _tokenize(run: Run, candidate: Run) -> dict:
    """Semantic IDs of the candidate: the old codes and those of new items, or new ones where drift says so."""
    target, key = candidate.folder / "semantic_ids", tokenize_key(candidate.config, candidate.dataset)
    new_items = candidate.dataset.item_table[run.dataset.n_items :]
    drift = run.ids.drift_report(new_items)
    if drift["retokenize"]:
        tokenize(candidate.config, candidate.dataset, target)
        return drift
    if is_current(target, IDS_KIND, key):
        return drift
    source = run.folder / "semantic_ids"
    info = open_artifact(source, IDS_KIND)["info"]
    catalogue = run.ids.append(new_items).ids.catalogue if len(new_items) else run.ids.catalogue
    with atomic_folder(target, IDS_KIND, key, info | {"appended": len(new_items)}) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        np.save(folder / "codes.npy", catalogue.codes.cpu().numpy())
        np.save(folder / "text.npy", catalogue.text.cpu().numpy())
        run.ids.codebooks.save(folder / "codebooks.safetensors", key)
    log.info("update: %d new items got codes of the present codebooks", len(new_items))
    return drift


def _train(run: Run, candidate: Run, start: WarmStart, fitted_on: str) -> None:
    """Warm-start backbone and decoder; counts are taken anew and the re-ranker goes on with its weights."""
    from genrec.training.fit import fit

    config = candidate.config
    fits = model_fits(config)
    for one in fits:
        plan = replace(one.resolved(candidate.folder), warm_start=start)
        fit(one.config, candidate.dataset, candidate.ids, candidate.folder / one.name, plan)
    count_candidate_features(candidate)
    key = reranker_key(candidate.folder, config)
    if not is_current(candidate.folder / "reranker", RERANKER_KIND, key):
        with atomic_folder(candidate.folder / "reranker", RERANKER_KIND, key, {"from": fitted_on}) as folder:
            ignored = shutil.ignore_patterns(MANIFEST)
            shutil.copytree(run.folder / "reranker", folder, dirs_exist_ok=True, ignore=ignored)


def _decide(run: Run, candidate: Run, present: Ranker) -> GateDecision:
    """Both models answer yesterday's requests; the usual gate compares them."""
    updated, data, n_known = candidate.ranker("train"), candidate.dataset, run.dataset.n_items
    lists: dict[str, list[np.ndarray]] = {"before": [], "after": []}
    paired: dict[str, dict[str, np.ndarray]] = {"before": {}, "after": {}}
    for kind in (None, *data.query_kinds):
        parts = [data.requests(split, kind) for split in ("valid", "test")]
        for name, ranker in (("before", present), ("after", updated)):
            values: list[dict[str, np.ndarray]] = []
            for requests in parts:
                if len(requests):
                    answerable = _without_new_items(requests, n_known) if name == "before" else requests
                    ids = ranker.rank(answerable, SearchOptions(K, exclude_seen=kind is None))["fused"][0]
                    lists[name] += [ids] if kind is None else []
                    values.append(per_request_metrics(ids, requests.targets, [K]))
            if values:
                task = f"{kind} search " if kind else ""
                paired[name] |= {
                    f"{task}{metric}": np.concatenate([value[f"{metric}@{K}"] for value in values])
                    for metric in ("recall", "ndcg")
                }
    if not paired["after"]:
        raise UserError("update: the last day of the log has no requests to evaluate the model on")
    measured = {
        name: Measured(whole := np.concatenate(lists[name]), paired[name], {"coverage": coverage(whole, data.n_items)})
        for name in ("before", "after")
    }
    config = run.config
    return decide(measured["before"], measured["after"], config.preference.tolerance, config.seed)


def _without_new_items(requests: Requests, n_items: int) -> Requests:
    """The requests restricted to events of the first ``n_items`` items, which the present model can read."""
    keep = requests.items < n_items
    counted = np.concatenate([[0], np.cumsum(keep)])
    rows = np.flatnonzero(keep)
    events = {name: getattr(requests, name)[rows] for name in ("items", "timestamps", "actions", "queries")}
    return replace(requests, offsets=counted[requests.offsets], **events)


def _swap(folder: Path) -> None:
    """Replace the run by the update and keep it as ``RUN.previous``; ``finish_swap`` completes it after a kill."""
    previous = _beside(folder, "previous")
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)
    _beside(folder, "update").rename(folder)


def finish_swap(folder: Path) -> None:
    """Complete a swap that was killed between its two renames: moves the accepted update to the run's folder."""
    updated, previous = _beside(folder, "update"), _beside(folder, "previous")
    if folder.exists() or not previous.is_dir():
        return
    accepted = (updated / REPORT).is_file() and read_json(updated / REPORT)["decision"]["kept"]
    (updated if accepted else previous).rename(folder)
    log.info("update: finished the swap of %s, which had been stopped", folder)
