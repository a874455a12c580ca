"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.errors import UserError

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
Attribute = Annotated[
    list[str] | None, typer.Option("--attribute", help="NAME=VALUE of the person, for a model with model.situation.")
]
Surface = Annotated[str | None, typer.Option("--surface", help="Where the answer is shown, as the log names it.")]
Mode = Annotated[str, typer.Option("--mode", help="fused, retrieve, generate, or rank (with a ranking head).")]
Ray = Annotated[
    str | None, typer.Option(help="Run on a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT (extra 'ray').")
]


def attributes_of(given: list[str] | None) -> dict[str, str] | None:
    """The attributes of ``--attribute`` options; ``UserError`` for one that is not NAME=VALUE."""
    for one in given or ():
        if not one.partition("=")[0] or "=" not in one:
            raise UserError(f"--attribute: '{one}' is not NAME=VALUE")
    return dict(one.split("=", 1) for one in given) if given else None
