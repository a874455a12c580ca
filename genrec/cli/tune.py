"""``genrec tune``: search a small space of settings on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.cli.arguments import ConfigPath, Overrides
from genrec.console import console
from genrec.errors import UserError


def tune(
    config: ConfigPath,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials in all, earlier ones included.")] = 20,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="YAML: setting -> list of values, or {low, high, log}; default: four settings."),
    ] = None,
) -> None:
    """Search settings with Optuna on validation, prune bad trials, and write the best as a config; resumes."""
    from genrec.pipeline.tune import SPACE
    from genrec.pipeline.tune import tune as tune_config

    result = tune_config(config, overrides or [], trials, SPACE if space is None else _read(space))
    console.print(f"{result.finished} trials finished, {result.pruned} stopped early", highlight=False)
    before = "" if result.before is None else f" (as configured {result.before:.4f})"
    console.print(f"validation quality {result.quality:.4f}{before}", highlight=False)
    for name, value in result.settings.items():
        console.print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}", highlight=False)
    console.print(f"config: {result.config}\nnext:   genrec run {result.config}", soft_wrap=True, highlight=False)


def _read(path: Path) -> dict:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--space: {path} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise UserError(f"--space: {path} must map settings to lists or ranges")
    return found
