"""What the commands print: tables of answers, results, codes and decisions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from genrec.console import console

if TYPE_CHECKING:  # slow to import
    from genrec.evaluation.protocol import Evaluation
    from genrec.inference.recommender import Answer
    from genrec.preference.acceptance import GateDecision
    from genrec.runs.run import Run


def show_ids(folder: Path) -> None:
    """The headline of the semantic IDs' report in ``folder``."""
    from genrec.artifacts.folders import read_json
    from genrec.semantic_ids.report import headline, summary

    report = read_json(folder / "report.json")
    header, *rows = headline(report)
    table = Table(*header, title=f"semantic IDs: {report['quantizer']['quantizer']}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(summary(report), highlight=False)
    if report["quantizer"].get("collapsed"):
        console.print(
            f"collapsed levels: {report['quantizer']['collapsed']}; fewer codes or another quantizer", style="bold red"
        )
    console.print(f"report and figures: {folder}")


def show_decision(folder: Path, decision: GateDecision) -> None:
    """What the acceptance gate of the preference stage measured and decided."""
    table = Table("measure", "before", "after", "95 % of the difference", "", title="preference stage, validation")
    for row in decision.rows:
        interval = "" if row.low is None else f"[{row.low:+.4f}, {row.high:+.4f}]"
        table.add_row(row.name, f"{row.before:.4f}", f"{row.after:.4f}", interval, "" if row.fault is None else "fell")
    console.print(table)
    console.print(("kept: " if decision.kept else "refused: ") + "; ".join(decision.reasons), highlight=False)
    model = f"; model: {folder / 'model_preferred'}" if decision.kept else ""
    console.print(f"report: {folder / 'preference'}{model}")


def show_protocol(job: Run, name: str, split: str, fitted: str, options: dict) -> None:
    """Run a protocol on a run and show its tables."""
    from genrec.evaluation.protocol_rows import run_protocol

    for result in run_protocol(job, name, split, fitted, **options):
        rows = result.rows()
        table = Table("model", *rows[0]["metrics"], title=result.title)
        for row in rows:
            table.add_row(row["model"], *(f"{value:.4f}" for value in row["metrics"].values()))
        console.print(table)
        for line in [*result.notes, *result.comparisons()]:
            console.print(line, highlight=False)
    console.print(f"results: {job.results(split, name) / 'tables.json'}")


def show_results(result: Evaluation) -> None:
    """The rows of an evaluation, a table per task, and how ours differs from the stack; the report has all pairs."""
    from genrec.evaluation.baselines import stack
    from genrec.evaluation.report import results_table_rich

    for table in results_table_rich(result.rows):
        console.print(table)
    lines = result.comparisons()
    for line in [line for line in lines if stack.NAME in line] or lines:
        console.print(line, highlight=False)


def show_answers(answers: Iterable[Answer], title: str) -> None:
    """Ranked items with their titles."""
    table = Table("rank", "item", "title", "score", title=title)
    for rank, answer in enumerate(answers, 1):
        table.add_row(str(rank), answer.item_id, answer.title or "", f"{answer.score:.3f}")
    console.print(table)
