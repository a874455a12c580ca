"""The command line. Exit codes: 0 done, 2 the user's mistake (one clear line), 1 ours."""

from __future__ import annotations

import logging
import os
import sys

import typer

from genrec import __version__
from genrec.cli.answer import predict, recommend, requests, search, suggest
from genrec.cli.artifacts import doctor, drift, export, fetch, list_datasets
from genrec.cli.compare import compare, evaluate, sweep
from genrec.cli.init import init
from genrec.cli.make import prefer, prepare, run, tokenize, train
from genrec.cli.serve import backup_events, export_events, serve, trim_events
from genrec.cli.tune import tune
from genrec.cli.update import update
from genrec.console import log_handler
from genrec.errors import UserError, machine_limit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One generative model for search and recommendation.",
)
datasets_app = typer.Typer(no_args_is_help=True, help="Data sets that arrive by themselves.")
app.add_typer(datasets_app, name="datasets")
VERBS = (
    *(init, run, prepare, tokenize, train, update, prefer),
    *(evaluate, compare, sweep, tune),
    *(recommend, search, suggest, predict, requests),
    *(export, export_events, backup_events, trim_events, serve),
    *(drift, doctor),
)
for verb in VERBS:
    app.command(verb.__name__.replace("_", "-"))(verb)
datasets_app.command("list")(list_datasets)
datasets_app.command()(fetch)

# Libraries whose progress and hints say nothing to a user of the command line.
QUIET = (
    "faiss",
    "faiss.loader",
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "bm25s",
    "matplotlib",
    "fsspec",
)


def main() -> None:
    """Run the command line; a ``UserError`` becomes one line and exit code 2."""
    level = (
        logging.WARNING if int(os.environ.get("RANK", "0")) else logging.INFO
    )  # of several processes the first speaks
    logging.basicConfig(level=level, format="%(message)s", handlers=[log_handler()])
    for noisy in QUIET:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(standalone_mode=False)  # where typer turns Ctrl+C or an Exit into a code, it returns it
        if code == 130:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("stopped; run the same command again to go on\n")
        sys.exit(130)
    except Exception as error:
        # Click's own usage errors carry an exit code of 2 and a one-line message.
        if hasattr(error, "format_message"):
            sys.stderr.write(f"error: {error.format_message()}\n")
            sys.exit(2)
        if line := machine_limit(error):
            sys.stderr.write(f"error: {line}\n")
            sys.exit(2)
        logging.getLogger(__name__).exception("genrec %s failed; this is our mistake", __version__)
        sys.exit(1)


if __name__ == "__main__":
    main()
