"""The verbs that measure: ``evaluate``, ``compare``, ``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.cli.arguments import FittedOn, Overrides, RunPath, Split
from genrec.cli.show import show_protocol, show_results
from genrec.console import console
from genrec.errors import UserError


def evaluate(
    run: RunPath,
    split: Split = "test",
    output: Annotated[Path | None, typer.Option(help="Also write metrics.json here.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Instead: baselines, product-search, session-search, sampled, cold-user, cold-items, "
            "personalisation, text-relevance or ranking."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the random items, protocol sampled only.")] = 1,
    requests: Annotated[
        int,
        typer.Option(min=0, help="Maximum requests of a kind, drawn at random, protocol personalisation only; 0: all."),
    ] = 0,
    fitted_on: FittedOn = None,
) -> None:
    """The results table of a run, with baselines, intervals and figures; or the tables of a search protocol."""
    from genrec.pipeline.stages import stage_evaluate
    from genrec.runs.run import Run

    job = Run.open(run)
    if protocol is None:
        if seeds != 1 or requests or fitted_on is not None:
            raise UserError(
                "--seeds, --requests and --fitted-on belong to a protocol; add --protocol NAME, or leave them out"
            )
        result = stage_evaluate(job, split)
        show_results(result)
        if output:
            write_text(output, (job.results(split) / "metrics.json").read_text(encoding="utf-8"))
        return
    if protocol != "sampled" and seeds != 1:
        raise UserError(f"--seeds: protocol {protocol} draws nothing; leave it out, or use --protocol sampled")
    if protocol != "personalisation" and requests:
        raise UserError(
            f"--requests: protocol {protocol} answers all requests; leave it out, or use --protocol personalisation"
        )
    options = {"sampled": {"seeds": seeds}, "personalisation": {"requests": requests}}.get(protocol, {})
    show_protocol(job, protocol, split, fitted_on or "train", options)
    if output:
        write_text(output, (job.results(split, protocol) / "tables.json").read_text(encoding="utf-8"))


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Run folders that were evaluated on the same split of the same data."
        ),
    ],
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds", help="They are seeds of one setting: means, deviations, and the fused row against the others."
        ),
    ] = False,
    rank: Annotated[
        bool,
        typer.Option("--rank", help="One order of the models over runs of any data sets: every metric votes (Borda)."),
    ] = False,
    split: Split = "test",
    output: Annotated[Path | None, typer.Option(help="Also write the table here, as Markdown.")] = None,
) -> None:
    """Evaluated runs side by side, paired request by request: each against the first, or together as seeds."""
    from genrec.evaluation import compare as comparison

    if rank and seeds:
        raise UserError("--rank and --seeds are two ways to join runs; give one of them")
    table = comparison.rank(runs, split) if rank else comparison.compare(runs, split, seeds)
    console.print(table, highlight=False, markup=False, soft_wrap=True)
    if output:
        write_text(output, table)


def sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A YAML file of rows, see configs/ablations/.")],
    overrides: Overrides = None,
) -> None:
    """Train and compare the rows of an ablation; continues a stopped one."""
    from genrec.pipeline.sweep import run_sweep

    folder = run_sweep(sweep, overrides or [])
    console.print((folder / "table.md").read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
    console.print(f"table and figure: {folder}")


def write_text(path: Path, text: str) -> None:
    """Write a file; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
