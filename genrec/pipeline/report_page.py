"""``report.html`` in a run folder: results, figures, semantic IDs and data summary on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from genrec.data.prepare.contents import describe
from genrec.evaluation.personalisation import titles_of
from genrec.evaluation.report import FITTED_ON, HEADLINES, Row, caveats, sections
from genrec.generation.options import SearchOptions
from genrec.runs.run import Run

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8885; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { text-align: left; }
td.list { white-space: normal; text-align: left; vertical-align: top; }
img { max-width: 100%; }
"""
FIGURES = (
    ("Training", ("model_backbone/curves.svg", "model/curves.svg")),
    ("Slices", ("results/recall_by_history_length.svg", "results/recall_by_item_popularity.svg")),
    ("Semantic IDs", ("semantic_ids/tree.svg", "semantic_ids/codebook_use.svg", "semantic_ids/prefixes.svg")),
)
DATA = ("users", "items", "events", "split", "split_fingerprint", "tie_rule", "synthetic_queries")


@dataclass(frozen=True)
class Example:
    """One request by title: what the user had before (newest last), what came next, and what the model recommends."""

    before: list[str]
    after: str
    recommended: list[str]


def examples(run: Run, split: str, n: int = 5, k: int = 5) -> list[Example]:
    """Some requests of a split, evenly spaced, answered by the run's model."""
    data = run.dataset
    requests = data.requests(split, None)
    with_history = np.flatnonzero(np.diff(requests.offsets) > 0)
    if not len(with_history):
        return []
    chosen = requests.take(with_history[np.unique(np.linspace(0, len(with_history) - 1, n).astype(int))])
    ids = run.ranker("train").rank(chosen, SearchOptions(k))["fused"][0]
    names = titles_of(data.item_table)
    items = [chosen.items[start:end][-k:] for start, end in pairwise(chosen.offsets)]
    return [
        Example([names[item] for item in had], names[target], [names[item] for item in row if item >= 0])
        for had, target, row in zip(items, chosen.targets, ids, strict=True)
    ]


def write_report_page(run: Run, rows: Sequence[Row], notes: Sequence[str], shown: Sequence[Example] = ()) -> Path:
    """Write ``RUN/report.html``. Figures are embedded, so the file can be sent alone."""
    held = escape("\n".join(describe(run.dataset.info)))
    parts = ["<h2>Data</h2>", _data(run), f"<pre>{held}</pre>"]
    parts += ["<h2>Results</h2>", *_results(rows)]
    parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in [*caveats(rows), *notes]) + "</ul>")
    if shown:
        parts += ["<h2>Examples</h2>", _examples(shown)]
    for title, names in FIGURES:
        images = [_image(run.folder / name) for name in names if (run.folder / name).is_file()]
        if images:
            parts += [f"<h2>{title}</h2>", *images]
    title = f"genrec: {escape(run.config.name)}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{"".join(parts)}</body></html>\n'
    target = run.folder / "report.html"
    target.write_text(page, encoding="utf-8")
    return target


def _data(run: Run) -> str:
    info = run.dataset.info
    return _table(["what", "value"], [[name.replace("_", " "), _text(info[name])] for name in DATA if name in info])


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _results(rows: Sequence[Row]) -> list[str]:
    """A table for each task, kind of query and fit, with one number and its interval a cell."""
    names = [f"{metric}@10" for metric in HEADLINES]
    parts = []
    for section in sections(rows):
        for index, group in enumerate(FITTED_ON.values()):
            lines = [row for row in (line[index] for line in section.lines) if row is not None]
            if lines:
                cells = [[row.model, *(_cell(row, name) for name in names)] for row in lines]
                parts += [f"<h3>{escape(section.title)}, {group}</h3>", _table(["model", *names], cells)]
    return parts


def _cell(row: Row, name: str) -> str:
    if name not in row.metrics:
        return "–"
    interval = row.intervals.get(name)
    return f"{row.metrics[name]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _examples(shown: Sequence[Example]) -> str:
    """A row a request; the item that came next is bold where the model recommends it."""

    def cell(names: Sequence[str], chosen: str = "") -> str:
        lines = (f"<b>{escape(name)}</b>" if name == chosen else escape(name) for name in names)
        return f'<td class="list">{"<br>".join(lines)}</td>'

    head = "<tr><th>had before, newest last</th><th>then chose</th><th>recommended</th></tr>"
    body = "".join(f"<tr>{cell(one.before)}{cell([one.after])}{cell(one.recommended, one.after)}</tr>" for one in shown)
    return f"<table>{head}{body}</table>"


def _image(path: Path) -> str:
    """A figure in the theme of the reader's browser."""
    name = escape(path.stem.replace("_", " "))
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
        for file in (path, path.with_name(f"{path.stem}-dark.svg"))
    )
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<p><picture>{source}<img alt="{name}" src="{light}"></picture></p>'
