"""Ablations as one command: the same data and budget, one change a row, compared request by request.

A sweep file names a config, the overrides of all rows, and the rows; all are compared with the first. Every row is an
ordinary run folder next to the table, so a stopped sweep continues and a finished row is not repeated. Rows are
compared on validation by default: the choice of defaults must not read the test split.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genrec import __version__
from genrec.artifacts.folders import fingerprint
from genrec.config.load import load_config, read_structured, to_dict
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, Requests
from genrec.errors import UserError
from genrec.evaluation.impression_ranking import HEAD, head_areas
from genrec.evaluation.metrics import per_request_metrics
from genrec.evaluation.protocol import commit
from genrec.generation.options import SearchOptions
from genrec.pipeline.stages import fit_network, stage_tokenize
from genrec.pipeline.sweep_tables import METRICS, SweepResults, write_tables
from genrec.runs.run import Run
from genrec.training.plan import TRAIN_VERSION

log = logging.getLogger(__name__)
BUDGET = ["training.refit=false", "evaluation.baselines=[]"]


@dataclass
class Sweep:
    """A sweep file: ``config`` is relative to the file, ``rows`` maps a row's name to its overrides."""

    config: str = ""
    name: str = "sweep"
    split: str = "valid"
    seeds: list[int] = field(default_factory=lambda: [42])
    overrides: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    requests: int = 0  # maximum requests of each task; 0 = all


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file. Raises ``UserError`` for a missing file, an unknown key or an invalid row."""
    path = Path(path)
    sweep = read_structured(path, Sweep, "sweep")
    if not sweep.rows or not sweep.seeds:
        raise UserError(f"{path}: a sweep needs at least one row and one seed")
    if sweep.split not in ("valid", "test"):
        raise UserError(f"{path}: split: '{sweep.split}' is not one of valid, test")
    sweep.config = str(path.parent / sweep.config)
    slugs = [_slug(row) for row in sweep.rows]
    if len(set(slugs)) < len(slugs) or not all(slugs):
        raise UserError(f"{path}: rows need names that differ in letters and digits")
    return sweep


def row_config(sweep: Sweep, row: str, seed: int, overrides: list[str]) -> tuple[Config, list[str]]:
    """The config of a row and the overrides that make it."""
    given = [
        *BUDGET,
        *sweep.overrides,
        *overrides,
        *sweep.rows[row],
        f"seed={seed}",
        f"name={sweep.name}/{_slug(row)}-{seed}",
    ]
    return load_config(sweep.config, given), given


def run_sweep(path: str | Path, overrides: list[str]) -> Path:
    """Make every row that is missing; write the table after each. Returns the sweep's folder.

    ``overrides`` hold for all rows. Writes ``table.md``, ``sweep.json`` and ``sweep.png`` (validation Recall@10 with
    intervals).
    """
    sweep = load_sweep(path)
    for row in sweep.rows:  # all are checked before the first is trained
        config, _ = row_config(sweep, row, sweep.seeds[0], overrides)
    folder = Path(config.output) / sweep.name
    results: SweepResults = {row: {} for row in sweep.rows}
    first: Path | None = None  # folders alone: a run keeps its data in memory
    for seed in sweep.seeds:
        first_of_seed: Path | None = None  # its backbone serves rows that change the code decoder alone
        for row in sweep.rows:
            config, _ = row_config(sweep, row, seed, overrides)
            run = Run(Path(config.output) / config.name, config)
            results[row][seed] = _row_answers(run, sweep, row, first_of_seed or first)
            first_of_seed = first_of_seed or run.folder
            first = first or run.folder
            write_tables(folder, sweep.name, sweep.split, results)
    return folder


def _row_answers(run: Run, sweep: Sweep, row: str, first: Path | None) -> dict[str, np.ndarray]:
    """Metrics of every request of a row: kept ones if config, data and code are the same, else trained and answered."""
    run.folder.mkdir(parents=True, exist_ok=True)
    _link_stages(run.folder, first)
    stage_tokenize(run)
    key = fingerprint(to_dict(run.config), sweep.requests, run.ids.key, TRAIN_VERSION, __version__, commit())
    kept = run.folder / f"answers_{sweep.split}_{key}.npz"
    if not kept.is_file():
        log.info("sweep: row '%s', seed %d (%s)", row, run.config.seed, " ".join(sweep.rows[row]) or "as configured")
        fit_network(run)
        arrays: dict[str, Any] = _answers(run, sweep)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}.part")
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        partial.rename(kept)
    with np.load(kept, allow_pickle=False) as loaded:
        return dict(loaded)


def _link_stages(folder: Path, first: Path | None) -> None:
    """Link the first row's artefacts; a row that needs other artefacts makes its own."""
    if first is None or first == folder:
        return
    for stage in ("dataset", "semantic_ids", "model_backbone", "candidate_features"):
        if (first / stage).is_dir() and not (folder / stage).exists():
            shutil.copytree(first / stage, folder / stage, copy_function=os.link)


def _answers(run: Run, sweep: Sweep) -> dict[str, np.ndarray]:
    """Metrics of every request, keyed ``task|mode|metric``."""
    ranker = run.ranker("train", fused=False)
    results: dict[str, np.ndarray] = {}
    # The re-ranker is fitted on validation: it cannot be judged there.
    modes = tuple(mode for mode in ranker.modes if mode != "fused")
    tasks = run.config.training.tasks  # a task that was not learnt is not judged
    kinds: list[str | None] = [None] if "recommendation" in tasks else []
    kinds += run.dataset.query_kinds if "search" in tasks else []
    for kind in kinds:
        requests = _some(run.dataset.requests(sweep.split, kind), sweep.requests)
        if not len(requests):
            continue
        for mode, (ranked, *_) in ranker.rank(requests, SearchOptions(10, modes)).items():
            values = per_request_metrics(ranked, requests.targets, [10])
            results |= {f"{kind or 'recommendation'}|{mode}|{name}": values[name] for name in METRICS}
    if ranker.generator.network.ranking is not None and ranker.model.stages:
        # Impressions too: each value, then its values on resamples of the users.
        result = head_areas(run, ranker, sweep.split, TRAIN)[0]
        resampled = result.resampled[HEAD]
        results |= {
            f"impressions|{name}": np.append(value, resampled[name]) for name, value in result.metrics[HEAD].items()
        }
    return results


def _some(requests: Requests, count: int) -> Requests:
    if not count or len(requests) <= count:
        return requests
    return requests.take(np.sort(np.random.default_rng(0).permutation(len(requests))[:count]))


def _slug(row: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
