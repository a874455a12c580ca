"""The results table, for files and for the terminal, and the folder that holds it with its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from genrec.artifacts.folders import write_json
from genrec.errors import UserError
from genrec.evaluation import figures
from genrec.evaluation.metrics import bootstrap_interval

FITTED_ON = {"train": "fitted on train", "train+valid": "refitted on train+valid"}
TASKS = {"recommendation": "Recommendation", "search": "Search"}
REAL_QUERIES = "logged"  # any other kind of query was made by a rule
HEADLINES = ("recall", "ndcg")
RAW = "raw_"  # prefix of a metric taken without removing the items the user already had
Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One model's results on one task, as the table shows them.

    ``metrics`` maps ``recall@10``, ``ndcg@10``, ... (items already had removed) and ``raw_recall@10``, ... (not
    removed) to means; ``intervals`` maps the same names to (low, high). ``query_kind`` is None for recommendation,
    ``logged`` for real queries, else the rule that made them. Raises ``UserError`` for an unknown task or fit.
    """

    model: str
    inputs: str  # what the model reads: "ids", "ids + text", ...
    fitted_on: str
    task: str
    query_kind: str | None
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    uses_request_time: bool = False  # whether the model was given the time of the request it answers

    def __post_init__(self) -> None:
        if self.fitted_on not in FITTED_ON or self.task not in TASKS:
            raise UserError(
                f"result of {self.model}: fitted_on={self.fitted_on!r}, task={self.task!r}; "
                f"expected one of {', '.join(FITTED_ON)} and one of {', '.join(TASKS)}"
            )

    @property
    def is_synthetic(self) -> bool:
        """Whether its queries were made by a rule, not typed by people."""
        return self.query_kind not in (None, REAL_QUERIES)


@dataclass(frozen=True)
class PerRequest:
    """What the slices need of one model on one task, request by request."""

    values: np.ndarray  # (N,) the metric, normally recall@10
    history_lengths: np.ndarray  # (N,) events the request could see
    target_popularity: np.ndarray  # (N,) training events of the target item

    def __post_init__(self) -> None:
        shapes = {np.shape(getattr(self, column.name)) for column in fields(self)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise UserError(f"per-request arrays have shapes {sorted(shapes)}; expected one length (N,) for all")


@dataclass(frozen=True)
class Section:
    """One table: the rows of one task and kind of query, a line per model and per column group a row or None."""

    name: str  # for file names
    title: str
    lines: tuple[tuple[Row | None, Row | None], ...]  # (line, group) in the order of FITTED_ON


def sections(rows: Sequence[Row]) -> list[Section]:
    """Rows by task and kind of query, in order of first appearance, recommendation first.

    Raises ``UserError`` for a row given twice.
    """
    grouped: dict[tuple[str, str | None], dict[tuple, dict[str, Row]]] = {}
    for row in sorted(rows, key=lambda row: list(TASKS).index(row.task)):
        line = grouped.setdefault((row.task, row.query_kind), {}).setdefault(
            (row.model, row.inputs, row.uses_request_time), {}
        )
        if row.fitted_on in line:
            raise UserError(
                f"the result of {row.model} ({row.inputs}, {row.task}, {row.fitted_on}) is given twice; give each once"
            )
        line[row.fitted_on] = row
    return [
        Section(
            _file_name(task, kind),
            _title(task, kind),
            tuple((line.get("train"), line.get("train+valid")) for line in lines.values()),
        )
        for (task, kind), lines in grouped.items()
    ]


def _title(task: str, query_kind: str | None) -> str:
    if query_kind is None:
        return TASKS[task]
    source = "logged queries" if query_kind == REAL_QUERIES else f"SYNTHETIC queries, rule: {query_kind}"
    return f"{TASKS[task]} ({source})"


def _file_name(task: str, query_kind: str | None) -> str:
    return task if query_kind is None else f"{task}_{re.sub('[^A-Za-z0-9]+', '_', query_kind)}"


def _headers(ks: Sequence[int]) -> list[str]:
    names = [f"{metric}@{k}" for metric in HEADLINES for k in ks]
    return ["model", "inputs", "request time", *(f"{name}, {group}" for group in FITTED_ON.values() for name in names)]


def _cells(line: Sequence[Row | None], ks: Sequence[int]) -> list[str]:
    first = next(row for row in line if row is not None)
    names = [f"{metric}@{k}" for metric in HEADLINES for k in ks]
    time = "used" if first.uses_request_time else "not used"
    return [first.model, first.inputs, time, *(_cell(row, name) for row in line for name in names)]


def _cell(row: Row | None, name: str) -> str:
    """``value [low, high] (raw value)``, or a dash where there is no such result."""
    if row is None or name not in row.metrics:
        return "–"
    text = _interval_text(row, name)
    if RAW + name in row.metrics:
        text += f" (raw {_number(row.metrics[RAW + name])})"
    return text


def _number(value: float) -> str:
    """Four decimals without the leading zero, as the field's papers print them."""
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0.") else text


def results_table_markdown(rows: Sequence[Row], ks: Sequence[int] = (10,), notes: Sequence[str] = ()) -> str:
    """The results in Markdown: a table per task and kind of query, caveats, then ``notes``."""
    blocks = []
    for section in sections(rows):
        headers = _headers(ks)
        lines = [headers, ["---"] * 3 + ["---:"] * (len(headers) - 3), *(_cells(line, ks) for line in section.lines)]
        blocks.append(
            "\n".join(
                [
                    f"## {section.title}",
                    "",
                    *("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines),
                ]
            )
        )
    blocks.append("\n".join(f"- {note}" for note in [*caveats(rows), *notes]))
    return "\n\n".join(blocks) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def caveats(rows: Sequence[Row]) -> list[str]:
    """Caveats of these rows: removal of already-had items, fits, synthetic queries, the request's time."""
    removal = "Items the user already had are removed from the lists; the raw figure beside is without removal."
    notes = [f"{removal} Brackets: bootstrap interval over requests."]
    if any(row.fitted_on == "train+valid" for row in rows):
        notes.append(
            "Fitted on train and refitted on train+valid are different protocols: compare within a column group only."
        )
    kinds = sorted({str(row.query_kind) for row in rows if row.is_synthetic})
    if kinds:
        notes.append(
            f"Queries of kind {', '.join(kinds)} are synthetic: made by a rule from the item that is sought, not "
            "typed by people."
        )
    timed = list(dict.fromkeys(row.model for row in rows if row.uses_request_time))
    used = f"used by: {', '.join(timed)}; not by the others." if timed else "not used by any model."
    notes.append(f"The request's own time was {used}")
    return notes


def results_table_rich(rows: Sequence[Row], ks: Sequence[int] = (10,)) -> list[Table]:
    """The results for a terminal of 80 columns: a ``rich`` table for each task, kind of query and fit.

    A cell holds one number and its interval. The last table carries the caveats; inputs are in ``table.md``.
    """
    names = [f"{metric}@{k}" for metric in HEADLINES for k in ks]
    tables = []
    for section in sections(rows):
        for index, group in enumerate(FITTED_ON.values()):
            lines = [row for row in (line[index] for line in section.lines) if row is not None]
            if not lines:
                continue
            title = f"{section.title}, {group}"
            table = Table(title=title, title_justify="left", caption_justify="left", min_width=78)
            table.add_column("model")
            for name in names:
                table.add_column(name, justify="right", no_wrap=True)
            for row in lines:
                table.add_row(row.model, *(_interval_text(row, name) for name in names))
            tables.append(table)
    if tables:
        tables[-1].caption = "\n".join(caveats(rows))
    return tables


def _interval_text(row: Row, name: str) -> str:
    """``value [low, high]``, or a dash where there is no such result."""
    if name not in row.metrics:
        return "–"
    text = _number(row.metrics[name])
    if name in row.intervals:
        low, high = row.intervals[name]
        text += f" [{_number(low)}, {_number(high)}]"
    return text


def history_slices(per_request: PerRequest, seed: int, edges: Sequence[int] = (5, 10, 20)) -> list[figures.Bar]:
    """Mean and interval by length of the history: below the first edge, between edges, from the last on."""
    bounds = [0, *edges]
    return _bars(
        per_request.values,
        np.searchsorted(edges, per_request.history_lengths, side="right"),
        _range_labels(bounds),
        seed,
    )


def popularity_slices(per_request: PerRequest, seed: int, n_slices: int = 4) -> list[figures.Bar]:
    """Mean and interval by training popularity of the target: "cold" items, then quantiles of the requests."""
    popularity = np.asarray(per_request.target_popularity)
    seen = popularity[popularity > 0]
    edges = (
        np.unique(np.quantile(seen, np.linspace(0, 1, n_slices + 1)[1:-1], method="higher"))
        if len(seen)
        else np.zeros(0)
    )
    bounds = [1, *(int(edge) + 1 for edge in edges)]
    bounds = [low for low in bounds if low == 1 or low <= popularity.max()]  # a slice above the largest would be empty
    return _bars(
        per_request.values, np.searchsorted(bounds, popularity, side="right"), ["cold", *_range_labels(bounds)], seed
    )


def _range_labels(bounds: Sequence[int]) -> list[str]:
    """Labels of [bound, next bound) for whole numbers; the last range is open."""
    inner = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(bounds)]
    return [*inner, f"{bounds[-1]}+"]


def _bars(values: np.ndarray, slices: np.ndarray, labels: Sequence[str], seed: int) -> list[figures.Bar]:
    """A bar per slice, empty slices included, so that the models of one figure share their labels."""
    bars = []
    for index, label in enumerate(labels):
        members = values[slices == index]
        low, high = bootstrap_interval(members, seed) if len(members) else (float("nan"), float("nan"))
        bars.append(
            figures.Bar(label, float(members.mean()) if len(members) else float("nan"), low, high, len(members))
        )
    return bars


def write_report(
    folder: Path,
    rows: Sequence[Row],
    meta: Mapping[str, Any],
    per_request: Mapping[str, PerRequest] | None = None,
    ks: Sequence[int] = (10,),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write tables and figures of the results.

    These are ``metrics.json``, ``table.md``, a ``results_*.png`` per table and, from ``per_request``,
    ``recall_by_*.png``. ``meta`` is stored as given: config, seed, split and its fingerprint, ties, commit.
    ``per_request`` maps a model's name to its recall@ks[0], all for the same requests; without it there are no slice
    figures.
    """
    if not rows:
        raise UserError("the report has no results; evaluate at least one model")
    folder.mkdir(parents=True, exist_ok=True)
    measure = f"{HEADLINES[0]}@{ks[0]}"
    (folder / "table.md").write_text(results_table_markdown(rows, ks, notes), encoding="utf-8")
    slices = {
        f"recall_by_{name}": {
            model: cut(arrays, seed) for model, arrays in (per_request or {}).items() if len(arrays.values)
        }
        for name, cut in (("history_length", history_slices), ("item_popularity", popularity_slices))
    }
    for name, models in slices.items():
        if models:
            title = name.replace("_", " ").capitalize()
            figures.grouped_bars(folder / f"{name}.png", _filled(models), title, measure)
    for section in sections(rows):
        figures.grouped_bars(
            folder / f"results_{section.name}.png", _result_bars(section, measure), section.title, measure
        )
    filled = {
        name: {model: [bar.as_dict() for bar in bars] for model, bars in models.items()}
        for name, models in slices.items()
        if models
    }
    report = {
        "meta": dict(meta),
        "rows": [_plain(row) for row in rows],
        "slices": filled,
        "notes": [*caveats(rows), *notes],
    }
    write_json(folder / "metrics.json", report)


def _filled(models: Mapping[str, list[figures.Bar]]) -> dict[str, list[figures.Bar]]:
    """The slices that hold a request: a figure has no room for empty ones, the file lists them."""
    keep = [any(bars[index].count for bars in models.values()) for index in range(len(next(iter(models.values()))))]
    return {model: [bar for bar, kept in zip(bars, keep, strict=True) if kept] for model, bars in models.items()}


def _plain(row: Row) -> dict[str, Any]:
    """The row for JSON: numpy scalars become floats."""
    metrics = {name: float(value) for name, value in row.metrics.items()}
    intervals = {name: [float(low), float(high)] for name, (low, high) in row.intervals.items()}
    return asdict(row) | {"metrics": metrics, "intervals": intervals}


def _result_bars(section: Section, name: str) -> dict[str, list[figures.Bar]]:
    """Column group -> a bar per line of the table."""
    groups: dict[str, list[figures.Bar]] = {}
    for index, group in enumerate(FITTED_ON.values()):
        column = [line[index] for line in section.lines]
        if any(row is not None and name in row.metrics for row in column):
            groups[group] = [
                _result_bar(line[index], next(row for row in line if row is not None), name) for line in section.lines
            ]
    return groups


def _result_bar(row: Row | None, line: Row, name: str) -> figures.Bar:
    value = float("nan") if row is None else row.metrics.get(name, float("nan"))
    low, high = (value, value) if row is None else row.intervals.get(name, (value, value))
    return figures.Bar(line.model, value, low, high)
