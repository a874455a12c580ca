"""The page of a run: everything on it is in the file itself."""

from __future__ import annotations

from genrec.evaluation.report import Row
from genrec.pipeline.report_page import Example, write_report_page


def test_the_page_holds_tables_figures_and_data_summary(prepared_run):
    metrics, intervals = {"recall@10": 0.25, "ndcg@10": 0.125}, {"recall@10": (0.2, 0.3)}
    rows = [
        Row("<ours>", "ids", "train", "recommendation", None, metrics, intervals),
        Row("BM25", "text", "train", "search", "category", metrics),
    ]
    visible = [Example(["Lamp <x>", "Cup"], "Plate", ["Bowl", "Plate"])]
    page = write_report_page(prepared_run, rows, ["a note"], visible).read_text(encoding="utf-8")
    assert "&lt;ours&gt;" in page and "0.2500 [0.2000, 0.3000]" in page and "SYNTHETIC" in page and "a note" in page
    assert "Lamp &lt;x&gt;<br>Cup" in page and "Bowl<br><b>Plate</b>" in page
    assert "prefers-color-scheme: dark" in page
    assert prepared_run.dataset.info["split_fingerprint"] in page and "items with title" in page and "span: 2" in page
    assert 'alt="tree" src="data:image/svg+xml;base64,' in page
    assert "http" not in page and "src=" in page and "<script" not in page
