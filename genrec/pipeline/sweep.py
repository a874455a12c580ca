"""Ablations as one command: the same data and budget, one change a row, compared request by request.

A sweep file names a config, the overrides all rows share, and the rows; the first row is what the others are compared with. Every row is an
ordinary run folder beside the table, so a stopped sweep goes on where it was, and a row that is there is not made again. Rows are judged on
validation by default: the choice of defaults must not read the test split.
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
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genrec.artifacts.folders import fingerprint, write_json
from genrec.config.load import load_config, read_yaml, to_dict
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, Requests
from genrec.errors import UserError
from genrec.evaluation.figures import Bar, grouped_bars
from genrec.evaluation.impression_ranking import HEAD, head_areas
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.pipeline.stages import fit_network, stage_tokenize
from genrec.runs.run import Run

log = logging.getLogger(__name__)
METRICS = ("recall@10", "ndcg@10")
BUDGET = ["training.refit=false", "evaluation.baselines=[]"]
MODES = {"retrieve": "retrieval", "generate": "generation", "rank": "ranking head"}


@dataclass
class Sweep:
    """``config``: a path, relative to the sweep file; ``overrides``: of all rows; ``rows``: overrides of each row by its name."""

    config: str = ""
    name: str = "sweep"
    split: str = "valid"
    seeds: list[int] = field(default_factory=lambda: [42])
    overrides: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    requests: int = 0  # of each task that are asked; 0 = all


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file. Raises ``UserError`` for a missing file, an unknown key or a row that is no valid config."""
    path = Path(path)
    loaded = read_yaml(path, Sweep, "sweep")
    try:
        sweep = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Sweep), loaded))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
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
    """Make every row that is not there yet; after each, write the table anew. Returns the sweep's folder.

    ``overrides`` are those of all rows. Writes ``table.md``, ``sweep.json`` and ``sweep.png`` (validation Recall@10 with intervals).
    """
    sweep = load_sweep(path)
    for row in sweep.rows:  # all are checked before the first is trained
        config, _ = row_config(sweep, row, sweep.seeds[0], overrides)
    folder = Path(config.output) / sweep.name
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {row: {} for row in sweep.rows}
    first: Path | None = None  # folders alone: a run that is kept keeps its data in memory
    for seed in sweep.seeds:
        first_of_seed: Path | None = None  # its trunk serves rows that change the code decoder alone
        for row in sweep.rows:
            config, given = row_config(sweep, row, seed, overrides)
            run = Run(Path(config.output) / config.name, config)
            run.folder.mkdir(parents=True, exist_ok=True)
            kept = run.folder / f"answers_{sweep.split}_{fingerprint(to_dict(config), sweep.requests)}.npz"
            if not kept.is_file():
                log.info("sweep: row '%s', seed %d (%s)", row, seed, " ".join(sweep.rows[row]) or "as configured")
                _share(run.folder, first_of_seed or first)
                stage_tokenize(run)
                fit_network(run)
                partial = kept.with_suffix(".part")
                with open(partial, "wb") as file:
                    np.savez(file, **_answers(run, sweep))
                partial.rename(kept)
            with np.load(kept, allow_pickle=False) as arrays:
                found[row][seed] = dict(arrays)
            first_of_seed = first_of_seed or run.folder
            first = first or run.folder
            _write(folder, sweep, found)
    return folder


def _share(folder: Path, first: Path | None) -> None:
    """What the first row has made, as links; a row that needs others makes its own in their place."""
    for stage in (
        ("dataset", "semantic_ids", "model_backbone", "candidate_features")
        if first is not None and first != folder
        else ()
    ):
        if (first / stage).is_dir() and not (folder / stage).exists():
            shutil.copytree(first / stage, folder / stage, copy_function=os.link)


def _answers(run: Run, sweep: Sweep) -> dict[str, np.ndarray]:
    """Metrics of every request, keyed ``task|mode|metric``."""
    ranker, found = run.ranker("train", fused=False), {}
    # The re-ranker is fitted on validation: it cannot be judged there.
    modes = tuple(mode for mode in ranker.modes if mode != "fused")
    tasks = run.config.training.tasks  # what a network has not learnt says nothing about it
    for kind in [
        *([None] if "recommendation" in tasks else []),
        *(run.dataset.query_kinds if "search" in tasks else []),
    ]:
        requests = _some(run.dataset.requests(sweep.split, kind), sweep.requests)
        if not len(requests):
            continue
        for mode, (ranked, *_) in ranker.rank(requests, SearchOptions(10, modes)).items():
            values = per_request_metrics(ranked, requests.targets, [10])
            found |= {f"{kind or 'recommendation'}|{mode}|{name}": values[name] for name in METRICS}
    if (
        ranker.generator.network.ranking is not None and ranker.model.stages
    ):  # by what was shown too: each value, then those of resamples of the users
        result = head_areas(run, ranker, sweep.split, TRAIN)[0]
        resampled = result.resampled[HEAD]
        found |= {f"shown|{name}": np.append(value, resampled[name]) for name, value in result.metrics[HEAD].items()}
    return found


def _some(requests: Requests, count: int) -> Requests:
    if not count or len(requests) <= count:
        return requests
    return requests.take(np.sort(np.random.default_rng(0).permutation(len(requests))[:count]))


def _write(folder: Path, sweep: Sweep, found: dict[str, dict[int, dict[str, np.ndarray]]]) -> None:
    """The table of the rows that are there; seeds are averaged request by request, differences paired on the seeds both rows have."""
    reference = next(iter(sweep.rows))
    done = {row: seeds for row, seeds in found.items() if seeds}
    keys = list(
        dict.fromkeys(
            key.rsplit("|", 1)[0]
            for seeds in done.values()
            for one in seeds.values()
            for key in one
            if key.count("|") == 2
        )
    )
    lines, report, bars = [f"# {sweep.name}", ""], [], {}
    for key in keys:
        task, mode = key.split("|")
        lines += [f"**{task if task == 'recommendation' else f'search ({task})'}, {MODES[mode]}** ({sweep.split})", ""]
        lines += [
            f"| row | Recall@10 | nDCG@10 | Recall@10 minus {reference} | seeds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row, seeds in done.items():
            entry = _row(row, key, seeds, found[reference], reference)
            if entry is None:
                continue
            recall, (low, high), gain = entry["recall@10"], entry["interval"], entry.get("difference")
            change = "" if gain is None else difference_text(*gain)
            lines.append(
                f"| {row} | {recall:.4f} [{low:.4f}, {high:.4f}] | {entry['ndcg@10']:.4f} | {change} | {entry['seeds']} |"
            )
            report.append(entry)
            bars.setdefault(f"{task}, {MODES[mode]}", []).append(Bar(row, recall, low, high))
        lines.append("")
    areas = _areas(done, reference)
    if areas:
        lines += [*_area_lines(areas, sweep.split, reference), ""]
    lines.append(
        "Brackets: 95 % bootstrap over requests, means over the seeds that are there; differences are paired by request (of areas: by user)."
    )
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "sweep.json", {"split": sweep.split, "rows": report, "shown": areas})
    whole = {name: series for name, series in bars.items() if len(series) == len(done)}
    if whole:
        grouped_bars(folder / "sweep.png", whole, sweep.name, f"{sweep.split} recall@10")


def _row(row: str, key: str, seeds: dict, reference: dict, reference_name: str) -> dict[str, Any] | None:
    having = [seed for seed, one in seeds.items() if f"{key}|recall@10" in one]
    if not having:
        return None
    values = {name: np.mean([seeds[seed][f"{key}|{name}"] for seed in having], axis=0) for name in METRICS}
    entry: dict[str, Any] = {
        "row": row,
        "of": key,
        "seeds": len(having),
        **{name: float(value.mean()) for name, value in values.items()},
    }
    entry["interval"] = bootstrap_interval(values["recall@10"], 0)
    shared = [seed for seed in having if f"{key}|recall@10" in reference.get(seed, {})]
    if row != reference_name and shared:
        mine, theirs = (
            np.mean([one[seed][f"{key}|recall@10"] for seed in shared], axis=0) for one in (seeds, reference)
        )
        entry["difference"] = paired_test(mine, theirs, 0)
    return entry


def _areas(done: dict[str, dict[int, dict[str, np.ndarray]]], reference: str) -> list[dict[str, Any]]:
    """AUC and GAUC of what was shown, per row with a ranking head: the mean over seeds, and less the reference's on the seeds both have."""
    rows = []
    for row, seeds in done.items():
        names = sorted({key for one in seeds.values() for key in one if key.startswith("shown|")})
        for name in names:
            having = [seed for seed in seeds if name in seeds[seed]]
            entry = {
                "row": row,
                "of": name.partition("|")[2],
                "seeds": len(having),
                "value": float(np.mean([seeds[seed][name][0] for seed in having])),
            }
            shared = [seed for seed in having if name in done.get(reference, {}).get(seed, {})]
            if row != reference and shared:
                gain = np.mean([seeds[seed][name] - done[reference][seed][name] for seed in shared], axis=0)
                entry["difference"] = [float(gain[0]), *np.nanquantile(gain[1:], [0.025, 0.975]).tolist()]
            rows.append(entry)
    return rows


def _area_lines(areas: list[dict[str, Any]], split: str, reference: str) -> list[str]:
    names = list(dict.fromkeys(entry["of"] for entry in areas))
    cells = {(entry["row"], entry["of"]): entry for entry in areas}
    lines = [
        f"**what was shown, ranking head** ({split}); brackets: minus {reference}",
        "",
        "| row | " + " | ".join(names) + " | seeds |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for row in dict.fromkeys(entry["row"] for entry in areas):
        texts = []
        for name in names:
            entry = cells.get((row, name))  # a row may learn other stages
            gain = entry and entry.get("difference")
            texts.append(
                "–"
                if entry is None
                else f"{entry['value']:.4f}"
                + ("" if gain is None else f" ({gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}])")
            )
        lines.append(
            f"| {row} | " + " | ".join(texts) + f" | {max(entry['seeds'] for entry in areas if entry['row'] == row)} |"
        )
    return lines


def _slug(row: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
