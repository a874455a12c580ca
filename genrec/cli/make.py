"""The verbs that make a run: ``run``, ``prepare``, ``tokenize``, ``train``, ``prefer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.cli.arguments import ConfigPath, Overrides
from genrec.cli.show import show_decision, show_ids, show_results
from genrec.console import console
from genrec.errors import UserError


def run(
    config: ConfigPath,
    overrides: Overrides = None,
    prefer: Annotated[
        bool, typer.Option("--prefer", help="Include the preference stage, as genrec prefer does.")
    ] = False,
) -> None:
    """Everything that is not up to date, then the results table."""
    from genrec.pipeline.stages import stage_evaluate, stage_train
    from genrec.runs.run import Run
    from genrec.training.distributed import rank_and_world

    job = Run.create(config, overrides or [])
    stage_train(job)
    if rank_and_world()[0]:
        return  # the first of the processes that trained together goes on alone
    if prefer:
        from genrec.preference.stage import stage_prefer

        show_decision(job.folder, stage_prefer(job))
    result = stage_evaluate(job)
    show_results(result)
    console.print(f"results: {job.folder / 'results'}")


def prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Read the log and write the prepared dataset."""
    from genrec.pipeline.stages import stage_prepare
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_prepare(job)
    console.print(f"dataset: {job.folder / 'dataset'}")


def tokenize(config: ConfigPath, overrides: Overrides = None) -> None:
    """Learn semantic IDs for the prepared items."""
    from genrec.pipeline.stages import stage_tokenize
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_tokenize(job)
    show_ids(job.folder / "semantic_ids")


def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Fit the network, the re-ranker and the SASRec baseline; resumes a stopped run."""
    from genrec.pipeline.stages import stage_train
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_train(job)
    console.print(f"model: {job.folder / 'model'}")


def prefer(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG_OR_RUN", help="A YAML file, or a run folder with a trained model.")
    ],
    overrides: Overrides = None,
) -> None:
    """Train the code decoder on rewards; kept as RUN/model_preferred only if validation agrees."""
    from genrec.pipeline.stages import stage_train
    from genrec.preference.stage import stage_prefer
    from genrec.runs.run import Run

    if Path(config).is_dir():
        wrong = [override for override in overrides or [] if not override.startswith("preference.")]
        if wrong:
            raise UserError(
                f"override '{wrong[0]}': for a run folder only preference.* may be given; or give the config file"
            )
        job = Run.open(config, overrides or [])
    else:
        job = Run.create(config, overrides or [])
        stage_train(job)
    show_decision(job.folder, stage_prefer(job))
