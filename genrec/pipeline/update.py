"""``genrec update``: newer days are added to a trained run, and a gate decides whether the updated model replaces it.

The update is built next to the run, in ``RUN.update``: the log with the new days, the same ids and codes with new items
appended, and a network and re-rankers that start from the present weights; the network trains a stated number of steps
on new and replayed events. The last day of the log ("yesterday") is held out: its first half calibrates the
re-rankers, on its second half the present and the updated model answer the same requests. Only if the gate accepts,
``RUN.update`` replaces the run, which is kept as ``RUN.previous``. Codes are rebuilt, and the model with them, only
where drift says so. A rejected or interrupted update leaves the run unchanged; an interrupted update is resumed.
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
from genrec.config.schema import SEQUENCE_ROWS, Config
from genrec.data.prepare.pipeline import prepare
from genrec.errors import UserError
from genrec.model.network import GenerativeRecommender
from genrec.pipeline.reranking import fit_reranker
from genrec.pipeline.stages import count_candidate_features, fit_model_and_reranker
from genrec.pipeline.update_gate import decide_update
from genrec.preference.acceptance import GateDecision
from genrec.ranking.ranker import Ranker
from genrec.runs.run import FITTED, Run
from genrec.runs.stages import model_fits
from genrec.semantic_ids.drift import drift_report
from genrec.semantic_ids.tokenize import KIND as IDS_KIND
from genrec.semantic_ids.tokenize import tokenize, tokenize_key
from genrec.training.plan import WarmStart

log = logging.getLogger(__name__)
STEPS, REPLAY = 200, 0.5
DAY = 86_400
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
        learnt = old.known_lengths(FITTED[fitted_on][2])
        _train(candidate, WarmStart(present.generator.network, learnt, steps, replay), present)
    seconds.lap("train")
    decision = decide_update(candidate, present, old.n_items)
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
    config.evaluation.baselines = [name for name in config.evaluation.baselines if name not in SEQUENCE_ROWS]
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
    fitted = run.ids.baseline["items"]  # a day brings few items: all that came since the codebooks were fitted count
    since = run.ids.encode_new(candidate.dataset.item_table[fitted:])
    codes = run.ids.catalogue.codes.numpy()[:fitted]
    drift = drift_report(run.ids.codebooks, run.ids.baseline, codes, since.codes, since.vectors)
    if drift["retokenize"]:
        tokenize(candidate.config, candidate.dataset, target)
        return drift
    if is_current(target, IDS_KIND, key):
        return drift
    source, new_items = run.folder / "semantic_ids", candidate.dataset.item_table[run.dataset.n_items :]
    info = open_artifact(source, IDS_KIND)["info"]
    catalogue = run.ids.append(new_items).ids.catalogue if len(new_items) else run.ids.catalogue
    with atomic_folder(target, IDS_KIND, key, info | {"appended": len(new_items)}) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        np.save(folder / "codes.npy", catalogue.codes.cpu().numpy())
        np.save(folder / "text.npy", catalogue.text.cpu().numpy())
        run.ids.codebooks.save(folder / "codebooks.safetensors", key)
    log.info("update: %d new items got codes of the present codebooks", len(new_items))
    return drift


def _train(candidate: Run, start: WarmStart, present: Ranker) -> None:
    """Count candidate features anew, and warm-start backbone, decoder and re-rankers."""
    from genrec.training.fit import fit

    count_candidate_features(candidate)
    for one in model_fits(candidate.config):
        plan = replace(one.resolved(candidate.folder), warm_start=start)
        fit(one.config, candidate.dataset, candidate.ids, candidate.folder / one.name, plan, lambda: candidate.lexical)
    fit_reranker(candidate, present.rerankers)


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
