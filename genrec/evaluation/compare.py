"""Compare runs request by request: as seeds of one setting, or as settings compared with the first.

``genrec evaluate`` leaves the metrics of every request in ``results/per_request.npz``. This module loads nothing
else, so a comparison takes seconds. Results that a run's present model and config did not make are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.artifacts.folders import fingerprint
from genrec.data.dataset import Requests
from genrec.errors import UserError
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test
from genrec.evaluation.protocol import OUR_NAMES
from genrec.evaluation.report import FITTED_ON, RAW
from genrec.evaluation.social_choice import Electorate, standings
from genrec.runs.run import Run

FILE = "per_request.npz"
KEPT = ("recall@10", "ndcg@10", f"{RAW}recall@10", f"{RAW}ndcg@10")
FUSED = OUR_NAMES["fused"]
RECOMMENDATION = "recommendation"
Key = tuple[str, str, str]  # task or kind of query, fit, model


def requests_fingerprint(requests: Requests, n_items: int) -> str:
    """The fingerprint of a list of requests by query and target; histories follow from the split's fingerprint."""
    texts = [requests.query_texts[query] if query >= 0 else None for query in requests.request_queries.tolist()]
    return fingerprint(n_items, requests.targets.tolist(), np.diff(requests.offsets).tolist(), texts)


def write_per_request(
    folder: Path, values: dict[tuple[str, str, str | None], dict[str, np.ndarray]], fingerprints: dict[str | None, str]
) -> None:
    """Write the metrics of every request by model, fit and kind of query (None: recommendation).

    ``fingerprints`` are those of each kind's requests.
    """
    arrays = {
        f"{kind or RECOMMENDATION}|{fitted}|{model}|{name}": one[name].astype(np.float32)
        for (model, fitted, kind), one in values.items() for name in KEPT if name in one
    }  # fmt: skip
    arrays |= {f"{kind or RECOMMENDATION}|requests": np.array(one) for kind, one in fingerprints.items()}
    np.savez_compressed(folder / FILE, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for its flags


@dataclass(frozen=True)
class Answers:
    """The per-request results of one run.

    ``values`` of each row by metric (N,), and ``fingerprints`` of the requests of each task.
    """

    name: str
    values: dict[Key, dict[str, np.ndarray]]
    fingerprints: dict[str, str]

    @classmethod
    def read(cls, folder: str | Path, split: str) -> Answers:
        """The present results of a run folder.

        Raises ``UserError`` where it was not evaluated on ``split``, or with another model, log or config.
        """
        run = Run.open(folder)
        results = run.results(split)
        try:
            run.stages.require(results.name)
        except UserError as error:
            raise UserError(f"{error}; then: genrec evaluate {folder} --split {split}") from None
        return cls.of(results, str(folder))

    @classmethod
    def of(cls, results: Path, name: str) -> Answers:
        """A folder of results, as it is."""
        with np.load(results / FILE, allow_pickle=False) as arrays:
            stored = dict(arrays)
        values: dict[Key, dict[str, np.ndarray]] = {}
        for key, array in stored.items():
            if key.count("|") == 3:
                task, fitted, model, metric = key.split("|")
                values.setdefault((task, fitted, model), {})[metric] = array
        return cls(
            name,
            values,
            {key.partition("|")[0]: str(array) for key, array in stored.items() if key.endswith("|requests")},
        )


def compare(runs: Sequence[Path], split: str = "test", pooled: bool = False, seed: int = 0) -> str:
    """The comparison as Markdown.

    ``pooled``: the runs are seeds of one setting; rows are means over them, with the standard deviation over runs, an
    interval over users, and the fused row against every other, paired by user. Otherwise every run is compared with
    the first, model by model, paired by request. Raises ``UserError`` for fewer than two runs or runs with
    different things.
    """
    if len(runs) < 2:
        raise UserError("compare: give at least two run folders")
    answers = [Answers.read(run, split) for run in runs]
    tasks = list(dict.fromkeys(task for one in answers for task in one.fingerprints))
    lines = [f"{split} split; " + "; ".join(f"run {number}: {one.name}" for number, one in enumerate(answers, 1)), ""]
    for task in tasks:
        if len({one.fingerprints[task] for one in answers if task in one.fingerprints}) > 1:
            raise UserError(
                f"compare: the runs have different requests ({task}); compare runs of one data set, split and query "
                "kind"
            )
        keys = [key for key in dict.fromkeys(key for one in answers for key in one.values) if key[0] == task]
        title = task if task == RECOMMENDATION else f"search ({task})"
        for fitted in [fit for fit in FITTED_ON if any(key[1] == fit for key in keys)]:
            rows = [key for key in keys if key[1] == fitted]
            lines += [
                f"**{title}, {FITTED_ON[fitted]}**",
                "",
                *(_pooled(rows, answers, seed) if pooled else _against_first(rows, answers, seed)),
                "",
            ]
    lines.append(
        "Brackets: 95 % bootstrap over requests"
        + (" of each request's mean over runs; deviation: over runs." if pooled else ".")
    )
    return "\n".join(lines) + "\n"


def rank(runs: Sequence[Path], split: str = "test", seed: int = 0) -> str:
    """One order of the models over runs of any data sets: a Markdown table for each kind of request.

    Voters are Recall@10 and nDCG@10 of each run, fitted on train; models are those that all runs measured. Raises
    ``UserError`` where fewer than two are.
    """
    answers = [Answers.read(run, split) for run in runs]
    lines = [f"{split} split, fitted on train; Recall@10 and nDCG@10 of each run vote", ""]
    for task in dict.fromkeys(task for one in answers for task in one.fingerprints):
        measured = {
            one.name: {key[2]: row for key, row in one.values.items() if key[:2] == (task, "train")}
            for one in answers
            if task in one.fingerprints
        }
        models = [name for name in next(iter(measured.values())) if all(name in rows for rows in measured.values())]
        electorates = [
            Electorate(name, np.array([[rows[model][metric] for metric in KEPT[:2]] for model in models]))
            for name, rows in measured.items()
        ]
        title = task if task == RECOMMENDATION else f"search ({task})"
        lines += [f"**{title}**: {', '.join(measured)}", "", "| model | Borda | majorities won, lost | first in |"]
        lines += ["| --- " * 4 + "|"]
        lines += [
            f"| {one.model} | {one.borda:.3f} | {one.wins}, {one.losses} | {one.first:.0%} |"
            for one in standings(models, electorates, seed)
        ]
        lines.append("")
    lines.append("Borda: mean fraction of rivals beaten. Majorities: pairwise. First in: of 200 bootstrap draws.")
    return "\n".join(lines) + "\n"


def _pooled(rows: list[Key], answers: list[Answers], seed: int) -> list[str]:
    lines = [
        "| model | Recall@10 | deviation | nDCG@10 | deviation | raw Recall@10 | fused minus it, Recall@10 | runs |",
        "| --- " * 8 + "|",
    ]
    means: dict[Key, dict[str, list[np.ndarray]]] = {
        key: {name: [one.values[key][name] for one in answers if name in one.values.get(key, {})] for name in KEPT}
        for key in rows
    }
    fused = next((means[key]["recall@10"] for key in rows if key[2] == FUSED), None)
    for key in rows:
        cells = []
        for name in ("recall@10", "ndcg@10"):
            values = means[key][name]
            low, high = bootstrap_interval(np.mean(values, axis=0), seed)
            spread = np.std([one.mean() for one in values], ddof=1) if len(values) > 1 else float("nan")
            cells += [f"{np.mean(values):.4f} [{low:.4f}, {high:.4f}]", f"{spread:.4f}"]
        raw = means[key][f"{RAW}recall@10"]
        cells.append(f"{np.mean(raw):.4f}" if raw else "–")
        other = means[key]["recall@10"]
        cells.append(
            ""
            if fused is None or key[2] == FUSED or len(fused) != len(other)
            else _difference(np.mean(fused, axis=0), np.mean(other, axis=0), seed)
        )
        lines.append(f"| {key[2]} | " + " | ".join(cells) + f" | {len(other)} |")
    return lines


def _against_first(rows: list[Key], answers: list[Answers], seed: int) -> list[str]:
    heads = [f"run {number}: Recall@10 / nDCG@10" for number in range(1, len(answers) + 1)]
    heads += [f"run {number} minus run 1, Recall@10" for number in range(2, len(answers) + 1)]
    lines = ["| model | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for key in rows:
        columns = [one.values.get(key) for one in answers]
        cells = [
            "–" if one is None else f"{one['recall@10'].mean():.4f} / {one['ndcg@10'].mean():.4f}" for one in columns
        ]
        for one in columns[1:]:
            cells.append(
                "–"
                if one is None or columns[0] is None
                else _difference(one["recall@10"], columns[0]["recall@10"], seed)
            )
        lines.append(f"| {key[2]} | " + " | ".join(cells) + " |")
    return lines


def _difference(ours: np.ndarray, other: np.ndarray, seed: int) -> str:
    return difference_text(*paired_test(ours, other, seed))
