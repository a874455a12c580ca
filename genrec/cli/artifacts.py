"""The verbs around finished artefacts: ``export``, ``drift``, ``doctor``, ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from genrec.cli.arguments import FittedOn, RunPath
from genrec.console import console
from genrec.errors import UserError


def export(
    run: RunPath,
    output: Annotated[Path, typer.Option(help="The bundle's folder; an older bundle there is replaced.")],
    fitted_on: FittedOn = None,
    without_users: Annotated[bool, typer.Option("--without-users", help="Leave people's histories out.")] = False,
    licence: Annotated[str | None, typer.Option(help="A line for the model card.")] = None,
    with_programs: Annotated[
        bool, typer.Option("--with-programs", help="Add torch.export programs for other runtimes; takes minutes.")
    ] = False,
) -> None:
    """Write a self-contained bundle to serve: weights, codes, items, model card, checksums."""
    from genrec.inference.bundle import export as write

    folder = write(run, output, fitted_on, not without_users, licence, with_programs)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.print(f"bundle: {folder} ({size / 1e6:.1f} MB)", highlight=False)


def drift(
    run: RunPath,
    items: Annotated[
        Path,
        typer.Argument(
            metavar="ITEMS", help="New items: Parquet, CSV or JSON lines with title, brand, category, text."
        ),
    ],
) -> None:
    """Whether the codes still fit these new items, or it is time to tokenize again."""
    from genrec.catalogue.semantic_ids import SemanticIds, read_items

    report = SemanticIds.load(run / "semantic_ids").drift_report(read_items(items))
    table = Table("what", "value", "no drift")
    expected = {"far_share": "0.05", "taken": f"{report['taken_fit']:.3f}", "effective_codes": "1", "growth": "below 2"}
    for name, value in report.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "taken_fit":
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value), expected.get(name, ""))
    console.print(table)
    reasons = ", ".join(report["reasons"])
    console.print(f"tokenize again: {reasons}" if report["retokenize"] else "the codes still fit", highlight=False)
    console.print(report["rule"], style="dim", highlight=False)


def list_datasets() -> None:
    """What can be fetched."""
    from genrec.data.registry import list_datasets as known

    table = Table("name", "description", "terms")
    for dataset in known():
        table.add_row(dataset.name, dataset.description, dataset.terms)
    console.print(table)


def fetch(name: str, root: Annotated[Path, typer.Option(help="Where data sets live.")] = Path("data")) -> None:
    """Bring a data set and check it."""
    from genrec.data.registry import fetch as bring

    console.print(f"{bring(name, root, lambda message: console.print(message))}")


def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A run folder, a bundle, or a dataset, model or other artefact inside one.")
    ] = None,
) -> None:
    """Versions, devices, free disk and memory; with a path, what is broken there (exit code 2) and the remedy."""
    from genrec.cli.doctor import check, machine

    table = Table("what", "value")
    for name, value in machine():
        table.add_row(name, value)
    console.print(table)
    if path:
        findings = []
        for finding in check(path):
            findings.append(finding)
            console.print(f"{'BROKEN  ' if finding.broken else ''}{finding}", highlight=False, markup=False)
        broken = [finding for finding in findings if finding.broken]
        if broken:
            more = f" (and {len(broken) - 1} more, see above)" if len(broken) > 1 else ""
            raise UserError(f"{broken[0]}{more}")
