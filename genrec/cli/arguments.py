"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. training.epochs=5.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by: genrec run CONFIG.")]
BundlePath = Annotated[
    Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder, or a bundle made by: genrec export.")
]
FittedOn = Annotated[str | None, typer.Option("--fitted-on", help="train, preferred or train+valid.")]
Split = Annotated[str, typer.Option(help="test or valid.")]
Count = Annotated[int, typer.Option("-k", help="How many items.")]
Category = Annotated[
    str | None, typer.Option("--category", help="Only this category: a name, or a path such as 'Beauty > Hair Care'.")
]
Mode = Annotated[str, typer.Option("--mode", help="fused, retrieve, generate, or rank (with a ranking head).")]
Ray = Annotated[
    str | None, typer.Option(help="Run on a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT (extra 'ray').")
]
