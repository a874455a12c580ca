"""The command line. Exit codes: 0 done, 2 the user's mistake (one clear line), 1 ours."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from genrec import __version__
from genrec.cli.init import init
from genrec.cli.serve import export_events, serve
from genrec.cli.show import show_answers, show_ids, show_protocol, show_results, show_verdict
from genrec.console import console, log_handler
from genrec.errors import UserError, machine_limit

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)
datasets_app = typer.Typer(no_args_is_help=True, help="Data sets that arrive by themselves.")
app.add_typer(datasets_app, name="datasets")

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. training.epochs=5.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by: genrec run CONFIG.")]
BundlePath = Annotated[
    Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder, or a bundle made by: genrec export.")
]
FittedOn = Annotated[str | None, typer.Option("--fitted-on", help="train, preferred or train+valid.")]
Count = Annotated[int, typer.Option("-k", help="How many items.")]
Category = Annotated[
    str | None, typer.Option("--category", help="Only this category: a name, or a path such as 'Beauty > Hair Care'.")
]
Mode = Annotated[str, typer.Option("--mode", help="fused, retrieve, generate, or rank (with a ranking head).")]


@app.command()
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Everything that is not up to date, then the results table."""
    from genrec.pipeline.stages import stage_evaluate, stage_train
    from genrec.runs.run import Run
    from genrec.training.distributed import rank_and_world

    job = Run.create(config, overrides or [])
    stage_train(job)
    if rank_and_world()[0]:
        return  # the first of the processes that trained together goes on alone
    if job.config.preference.in_run:
        from genrec.preference.stage import stage_prefer

        show_verdict(job.folder, stage_prefer(job))
    result = stage_evaluate(job)
    show_results(result)
    console.print(f"results: {job.folder / 'results'}")


@app.command()
def prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Read the log and write the prepared dataset."""
    from genrec.pipeline.stages import stage_prepare
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_prepare(job)
    console.print(f"dataset: {job.folder / 'dataset'}")


@app.command()
def tokenize(config: ConfigPath, overrides: Overrides = None) -> None:
    """Learn semantic IDs for the prepared items."""
    from genrec.pipeline.stages import stage_tokenize
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_tokenize(job)
    show_ids(job.folder / "semantic_ids")


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Fit the network, the fusion and the SASRec baseline; resumes where a stopped run was."""
    from genrec.pipeline.stages import stage_train
    from genrec.runs.run import Run

    job = Run.create(config, overrides or [])
    stage_train(job)
    console.print(f"model: {job.folder / 'model'}")


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A YAML file of rows, see configs/ablations/.")],
    overrides: Overrides = None,
) -> None:
    """Train and compare the rows of an ablation; goes on where a stopped one was."""
    from genrec.pipeline.sweep import run_sweep

    folder = run_sweep(sweep, overrides or [])
    console.print((folder / "table.md").read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
    console.print(f"table and figure: {folder}")


@app.command()
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
                f"override '{wrong[0]}': a run folder's config is fixed, only preference.* may be given; or give the config file"
            )
        job = Run.open(config, overrides or [])
    else:
        job = Run.create(config, overrides or [])
        stage_train(job)
    show_verdict(job.folder, stage_prefer(job))


@app.command()
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    output: Annotated[Path | None, typer.Option(help="Also write metrics.json here.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Instead: baselines, product-search, session-search, sampled, cold-user, cold-items, personalisation or ranking."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the random items, protocol sampled only.")] = 1,
    requests: Annotated[
        int,
        typer.Option(min=0, help="Most requests of a kind, drawn at random, protocol personalisation only; 0 = all."),
    ] = 0,
    fitted_on: FittedOn = None,
) -> None:
    """The results table of a run, with baselines, intervals and figures; or the tables of a search protocol."""
    from genrec.pipeline.stages import stage_evaluate
    from genrec.runs.run import Run

    job = Run.open(run)
    if protocol is None and (seeds != 1 or requests or fitted_on is not None):
        raise UserError(
            "--seeds, --requests and --fitted-on belong to a protocol; add --protocol NAME, or leave them out"
        )
    if protocol is not None:
        if protocol != "sampled" and seeds != 1:
            raise UserError(f"--seeds: protocol {protocol} draws nothing; leave it out, or use --protocol sampled")
        if protocol != "personalisation" and requests:
            raise UserError(
                f"--requests: protocol {protocol} answers all requests; leave it out, or use --protocol personalisation"
            )
        options = {"sampled": {"seeds": seeds}, "personalisation": {"requests": requests}}.get(protocol, {})
        show_protocol(job, protocol, split, output, fitted_on or "train", options)
        return
    result = stage_evaluate(job, split)
    show_results(result)
    if output:
        folder = job.folder / ("results" if split == "test" else f"results_{split}")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text((folder / "metrics.json").read_text())


@app.command()
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
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    output: Annotated[Path | None, typer.Option(help="Also write the table here, as Markdown.")] = None,
) -> None:
    """Evaluated runs side by side, paired request by request: each against the first, or together as seeds."""
    from genrec.evaluation.compare import compare as side_by_side

    table = side_by_side(runs, split, seeds)
    console.print(table, highlight=False, markup=False, soft_wrap=True)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(table, encoding="utf-8")


@app.command()
def recommend(
    run: BundlePath, user: Annotated[str | None, typer.Option(help="A user of the data; without one, the popular items.")] = None,
    k: Count = 10, mode: Mode = "fused", fitted_on: FittedOn = None, category: Category = None,
) -> None:  # fmt: skip
    """What a person wants next, by title."""
    from genrec.inference.recommender import Recommender

    answers = Recommender.load(run, fitted_on).recommend(user, k=k, mode=mode, category=category)
    show_answers(answers, (f"for user {user}" if user else "popular") + (f" in {category}" if category else ""))


@app.command()
def suggest(
    run: RunPath, user: Annotated[str | None, typer.Option(help="A user of the data; without one, the most asked queries.")] = None,
    k: Count = 10, fitted_on: FittedOn = None,
) -> None:  # fmt: skip
    """What people with this history search next."""
    from genrec.inference.recommender import Recommender

    table = Table(
        "rank", "query", "asked before", "score", title=f"next queries of user {user}" if user else "most asked queries"
    )
    for rank, one in enumerate(Recommender.load(run, fitted_on).suggest(user, k=k), 1):
        table.add_row(str(rank), one.query, str(one.count), f"{one.score:.3f}")
    console.print(table)


@app.command()
def search(
    run: BundlePath, query: Annotated[str, typer.Argument(help="Query words.")],
    user: Annotated[str | None, typer.Option(help="Personalise for this user.")] = None, k: Count = 10, mode: Mode = "fused",
    fitted_on: FittedOn = None, category: Category = None,
) -> None:  # fmt: skip
    """What a person means by a query, by title."""
    from genrec.inference.recommender import Recommender

    if not query.strip():
        raise UserError("the query is empty; give at least one word, or use: genrec recommend")
    answers = Recommender.load(run, fitted_on).search(query, user, k=k, mode=mode, category=category)
    show_answers(
        answers, f"'{query}'" + (f" for user {user}" if user else "") + (f" in {category}" if category else "")
    )


@app.command()
def predict(
    run: BundlePath,
    requests: Annotated[Path, typer.Option(help="Parquet: request_id, user_id or history, timestamp, query.")],
    output: Annotated[Path, typer.Option(help="Parquet: request_id, rank, item_id, score.")],
    k: Count = 100, mode: Mode = "fused", fitted_on: FittedOn = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Do not remove items the history already holds.")] = False,
) -> None:  # fmt: skip
    """Answer a table of requests. The default model of a run is the one fitted on train, as in the results' first column."""
    from genrec.inference.predict import predict_file

    written = predict_file(run, requests, output, k, mode, fitted_on, not keep_seen)
    console.print(f"{written} rows: {output}")


@app.command()
def requests(
    run: RunPath,
    output: Annotated[Path, typer.Option(help="Folder for requests.parquet and truth.parquet.")],
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    query_kind: Annotated[
        str | None, typer.Option(help="Searches with this kind of query instead of recommendations.")
    ] = None,
) -> None:
    """Write a split's requests, with their histories, and the items that followed: to check our metrics with your own code."""
    from genrec.inference.predict import write_requests

    console.print(f"{write_requests(run, output, split, query_kind)} requests: {output}")


@app.command()
def drift(
    run: RunPath, items: Annotated[Path, typer.Argument(metavar="ITEMS", help="New items: Parquet, CSV or JSON lines with title, brand, category, text.")]
) -> None:  # fmt: skip
    """Do the codes still fit these new items, or is it time to tokenize again?"""
    from genrec.catalogue.semantic_ids import SemanticIds, read_items

    report = SemanticIds.load(run / "semantic_ids").drift_report(read_items(items))
    table = Table("what", "value", "no drift")
    expected = {"far_share": "0.05", "taken": f"{report['taken_fit']:.3f}", "effective_codes": "1", "growth": "below 2"}
    for name, value in report.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "taken_fit":
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value), expected.get(name, ""))
    console.print(table)
    console.print(
        "tokenize again: " + ", ".join(report["reasons"]) if report["retokenize"] else "the codes still fit",
        highlight=False,
    )
    console.print(report["rule"], style="dim", highlight=False)


@app.command()
def export(
    run: RunPath,
    output: Annotated[Path, typer.Option(help="The bundle's folder; an older bundle there is replaced.")],
    fitted_on: FittedOn = None,
    without_users: Annotated[bool, typer.Option("--without-users", help="Leave people's histories out.")] = False,
    licence: Annotated[str | None, typer.Option(help="A line for the model card.")] = None,
    without_programs: Annotated[
        bool, typer.Option("--without-programs", help="Leave the torch.export programs out.")
    ] = False,
) -> None:
    """Write a self-contained bundle to serve: weights, codes, items, model card, checksums."""
    from genrec.inference.bundle import export as write

    folder = write(run, output, fitted_on, not without_users, licence, not without_programs)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.print(f"bundle: {folder} ({size / 1e6:.1f} MB)", highlight=False)


app.command()(init)
app.command()(serve)
app.command("export-events")(export_events)


@datasets_app.command("list")
def list_datasets() -> None:
    """What can be fetched."""
    from genrec.data.registry import list_datasets as known

    table = Table("name", "description", "terms")
    for dataset in known():
        table.add_row(dataset.name, dataset.description, dataset.terms)
    console.print(table)


@datasets_app.command()
def fetch(name: str, root: Annotated[Path, typer.Option(help="Where data sets live.")] = Path("data")) -> None:
    """Bring a data set and check it."""
    from genrec.data.registry import fetch as bring

    console.print(f"{bring(name, root, lambda message: console.print(message))}")


@app.command()
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A run folder, a bundle, or a dataset, model or other artefact inside one.")
    ] = None,
) -> None:
    """Versions, devices, free disk and memory; with a path, what is whole there, what is broken (exit code 2) and the remedy."""
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


def main() -> None:
    """Run the command line; a ``UserError`` becomes one line and exit code 2."""
    level = (
        logging.WARNING if int(os.environ.get("RANK", "0")) else logging.INFO
    )  # of processes that train together, the first speaks
    logging.basicConfig(level=level, format="%(message)s", handlers=[log_handler()])
    for noisy in (
        "faiss",
        "faiss.loader",
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "bm25s",
        "matplotlib",
        "fsspec",
    ):
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
