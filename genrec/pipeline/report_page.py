"""``report.html`` in a run folder: results, figures, semantic IDs and data summary on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from genrec.evaluation.report import FITTED_ON, HEADLINES, Row, caveats, sections
from genrec.runs.run import Run

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8885; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; }
"""
FIGURES = (
    ("Training", ("model/curves.png", "model_backbone/curves.png")),
    ("Slices", ("results/recall_by_history_length.png", "results/recall_by_item_popularity.png")),
    ("Semantic IDs", ("semantic_ids/tree.png", "semantic_ids/codebook_use.png", "semantic_ids/prefixes.png")),
)
DATA = ("users", "items", "events", "split", "split_fingerprint", "tie_rule", "synthetic_queries")


def write_report_page(run: Run, rows: Sequence[Row], notes: Sequence[str]) -> Path:
    """Write ``RUN/report.html``. Figures are embedded, so the file can be sent alone."""
    parts = ["<h2>Data</h2>", _data(run)]
    parts += ["<h2>Results</h2>", *_results(rows)]
    parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in [*caveats(rows), *notes]) + "</ul>")
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
    return _table(["what", "value"], [[name, str(info[name])] for name in DATA if name in info])


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


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem.replace("_", " "))}" src="data:image/png;base64,{data}"></p>'
