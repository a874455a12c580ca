"""What the commands print: tables of answers, results, codes and verdicts."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from genrec.console import console


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


def show_verdict(folder: Path, verdict) -> None:
    """What the guard of the preference stage measured and decided (``genrec.preference.guard.GateDecision``)."""
    table = Table("measure", "before", "after", "95 % of the difference", "", title="preference stage, validation")
    for row in verdict.rows:
        between = "" if row.low is None else f"[{row.low:+.4f}, {row.high:+.4f}]"
        table.add_row(row.name, f"{row.before:.4f}", f"{row.after:.4f}", between, "" if row.fault is None else "fell")
    console.print(table)
    console.print(("kept: " if verdict.kept else "refused: ") + "; ".join(verdict.reasons), highlight=False)
    console.print(
        f"report: {folder / 'preference'}" + (f"; model: {folder / 'model_preferred'}" if verdict.kept else "")
    )


def show_protocol(job, name: str, split: str, output: Path | None, fitted: str, options: dict) -> None:
    """Run a protocol on a run and show its tables; ``output``: also write its JSON there."""
    from genrec.evaluation.protocol_rows import run_protocol

    for result in run_protocol(job, name, split, fitted, **options):
        rows = result.rows()
        table = Table("model", *rows[0]["metrics"], title=result.title)
        for row in rows:
            table.add_row(row["model"], *(f"{value:.4f}" for value in row["metrics"].values()))
        console.print(table)
        for line in [*result.notes, *result.comparisons()]:
            console.print(line, highlight=False)
    written = job.folder / ("results" if split == "test" else f"results_{split}") / f"protocol_{name}.json"
    console.print(f"results: {written}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written.read_text())


def show_results(result) -> None:
    """The rows of an evaluation, a table per task, and the paired comparisons."""
    from genrec.evaluation.report import results_table_rich

    for table in results_table_rich(result.rows):
        console.print(table)
    for line in result.comparisons():
        console.print(line, highlight=False)


def show_answers(answers, title: str) -> None:
    """Ranked items with their titles."""
    table = Table("rank", "item", "title", "score", title=title)
    for rank, answer in enumerate(answers, 1):
        table.add_row(str(rank), answer.item_id, answer.title or "", f"{answer.score:.3f}")
    console.print(table)
