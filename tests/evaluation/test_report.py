import io
import json

import numpy as np
import pytest
from rich.console import Console

from genrec.errors import UserError
from genrec.evaluation.report import (
    PerRequest,
    Row,
    history_slices,
    popularity_slices,
    results_table_markdown,
    results_table_rich,
    write_report,
)


def row(model="Co-occurrence", fitted_on="train", task="recommendation", query_kind=None, recall=0.0791, **more) -> Row:
    metrics = {"recall@10": np.float32(recall), "ndcg@10": 0.0497, "raw_recall@10": 0.07}
    return Row(model, "ids", fitted_on, task, query_kind, metrics, {"recall@10": (0.0757, 0.0828)}, **more)


ROWS = [
    row("BM25", task="search", query_kind="category", recall=0.2),
    row(),
    row(fitted_on="train+valid", recall=0.0893),
    row("Ours|A", uses_request_time=True),
    row("BM25", task="search", query_kind="logged", recall=0.3),
]


def table_line(text: str, model: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {model} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_markdown_puts_both_fits_on_one_line():
    text = results_table_markdown(ROWS, [10], ["Split: leave-last-out."])
    cells = table_line(text, "Co-occurrence")
    assert cells[3] == ".0791 [.0757, .0828] (raw .0700)" and cells[4] == ".0497"
    assert cells[5].startswith(".0893") and "refitted on train+valid" in text
    assert table_line(text, "Ours\\|A")[5] == "–"  # no such fit
    assert text.index("## Recommendation") < text.index("## Search") and text.endswith("- Split: leave-last-out.\n")


def test_markdown_tells_synthetic_queries_and_request_time():
    text = results_table_markdown(ROWS, [10])
    assert "## Search (SYNTHETIC queries, rule: category)" in text and "## Search (logged queries)" in text
    assert "kind category are synthetic" in text and "request's own time was used by: Ours|A" in text
    plain = results_table_markdown([row()], [10])
    assert "synthetic" not in plain.lower() and "not used by any model" in plain


def test_rich_tables_hold_the_rows():
    console = Console(width=80, record=True, file=io.StringIO())
    for table in results_table_rich(ROWS):
        console.print(table)
    visible = console.export_text()
    assert "Co-occurrence" in visible and ".0893 [.0757, .0828]" in visible and "SYNTHETIC" in visible
    assert "different protocols" in " ".join(visible.split())
    assert visible.count("Co-occurrence") == 2, "a model takes one line in each table"


def test_slices_by_hand():
    arrays = PerRequest(np.array([1.0, 0, 1, 0, 1, 1]), np.array([1, 4, 5, 12, 19, 20]), np.array([0, 1, 2, 2, 8, 9]))
    bars = history_slices(arrays, seed=0)
    assert [(bar.label, bar.value, bar.count) for bar in bars] == [
        ("0–4", 0.5, 2),
        ("5–9", 1.0, 1),
        ("10–19", 0.5, 2),
        ("20+", 1.0, 1),
    ]
    assert all(bar.low <= bar.value <= bar.high for bar in bars)
    bars = popularity_slices(arrays, seed=0, n_slices=2)
    assert [(bar.label, bar.count) for bar in bars] == [("cold", 1), ("1–2", 3), ("3+", 2)] and bars[2].value == 1
    cold = popularity_slices(PerRequest(np.ones(2), np.ones(2), np.zeros(2)), seed=0)
    assert [(bar.label, bar.count) for bar in cold] == [("cold", 2), ("1+", 0)] and np.isnan(cold[1].value)


def test_report_files_hold_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    arrays = PerRequest(rng.binomial(1, 0.2, 200).astype(float), rng.integers(1, 15, 200), rng.integers(0, 50, 200))
    write_report(tmp_path / "report", ROWS, {"seed": 3}, {"Co-occurrence": arrays, "Ours": arrays}, notes=["a note"])
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pictures = {"results_recommendation", "results_search_category", "results_search_logged"}
    pictures |= {"recall_by_history_length", "recall_by_item_popularity"}
    endings = (".png", ".svg", "-dark.png", "-dark.svg")
    assert names == {"metrics.json", "table.md"} | {f"{name}{ending}" for name in pictures for ending in endings}
    assert all((tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    stored = json.loads(
        (tmp_path / "report" / "metrics.json").read_text(), parse_constant=pytest.fail
    )  # NaN is not JSON
    assert stored["meta"]["seed"] == 3 and len(stored["rows"]) == 5 and "a note" in stored["notes"]
    assert stored["rows"][1]["metrics"]["recall@10"] == pytest.approx(0.0791)
    assert stored["rows"][1]["intervals"]["recall@10"] == [0.0757, 0.0828]
    assert stored["slices"]["recall_by_history_length"]["Ours"][3] == {
        "label": "20+",
        "count": 0,
        "value": None,
        "low": None,
        "high": None,
    }
    assert "Co-occurrence" in (tmp_path / "report" / "table.md").read_text(encoding="utf-8")


def test_mistakes_are_told():
    with pytest.raises(UserError, match="fitted_on"):
        row(fitted_on="test")
    with pytest.raises(UserError, match="given twice"):
        results_table_markdown([row(), row()], [10])
    with pytest.raises(UserError, match="one length"):
        PerRequest(np.zeros(2), np.zeros(3), np.zeros(2))
