"""``genrec update``: add newer days of the log to a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.console import console


def update(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by: genrec run CONFIG.")],
    log: Annotated[Path, typer.Option("--log", help="A file or folder of new events, in the format of the run's log.")],
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps each for backbone and code decoder.")] = 200,
    replay: Annotated[float, typer.Option("--replay", help="Fraction of older windows among those read.")] = 0.5,
) -> None:
    """Add new days, train on from the present weights, and replace the run if the acceptance gate agrees."""
    from genrec.pipeline.update import update as update_run

    report = update_run(run, log, steps, replay)
    decision = report.decision
    console.print(f"{report.events} new events, {report.users} new users, {report.items} new items")
    for row in decision.rows:
        console.print(f"{row.name}: {row.before:.4f} -> {row.after:.4f} (last day)", highlight=False)
    text = "accepted" if decision.kept else "refused"
    console.print(f"{text}: {'; '.join(decision.reasons)}")
    console.print(f"model: {run}" if decision.kept else f"{run} is unchanged; the refused update is in {run}.update")
