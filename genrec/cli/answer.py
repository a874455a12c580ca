"""The verbs that answer: ``recommend``, ``search``, ``suggest``, ``predict``, ``requests``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from genrec.cli.arguments import (
    Attribute,
    BundlePath,
    Category,
    Count,
    FittedOn,
    Mode,
    Ray,
    RunPath,
    Split,
    Surface,
    attributes_of,
)
from genrec.cli.show import show_answers
from genrec.console import console
from genrec.errors import UserError


def recommend(
    run: BundlePath,
    user: Annotated[str | None, typer.Option(help="A user of the data; without one, the popular items.")] = None,
    k: Count = 10,
    mode: Mode = "fused",
    fitted_on: FittedOn = None,
    category: Category = None,
    attribute: Attribute = None,
    surface: Surface = None,
) -> None:
    """What a person wants next, by title."""
    from genrec.inference.recommender import Recommender

    given = attributes_of(attribute)
    model = Recommender.load(run, fitted_on)
    answers = model.recommend(user, k=k, mode=mode, category=category, attributes=given, surface=surface)
    show_answers(answers, (f"for user {user}" if user else "popular") + (f" in {category}" if category else ""))


def suggest(
    run: RunPath,
    user: Annotated[
        str | None, typer.Option(help="A user of the data; without one, the most frequent queries.")
    ] = None,
    k: Count = 10,
    fitted_on: FittedOn = None,
) -> None:
    """What people with this history search next."""
    from genrec.inference.recommender import Recommender

    title = f"next queries of user {user}" if user else "most frequent queries"
    table = Table("rank", "query", "searches", "score", title=title)
    for rank, one in enumerate(Recommender.load(run, fitted_on).suggest(user, k=k), 1):
        table.add_row(str(rank), one.query, str(one.count), f"{one.score:.3f}")
    console.print(table)


def search(
    run: BundlePath,
    query: Annotated[str, typer.Argument(help="Query words.")],
    user: Annotated[str | None, typer.Option(help="Personalise for this user.")] = None,
    k: Count = 10,
    mode: Mode = "fused",
    fitted_on: FittedOn = None,
    category: Category = None,
    attribute: Attribute = None,
    surface: Surface = None,
) -> None:
    """What a person means by a query, by title."""
    from genrec.inference.recommender import Recommender

    if not query.strip():
        raise UserError("the query is empty; give at least one word, or use: genrec recommend")
    given = attributes_of(attribute)
    model = Recommender.load(run, fitted_on)
    answers = model.search(query, user, k=k, mode=mode, category=category, attributes=given, surface=surface)
    if answers.no_match:
        console.print(f"'{query}' names nothing of the catalogue; the answers are those without a query")
    elif answers.corrected:
        console.print(f"'{query}' was read as '{answers.corrected}'")
    show_answers(
        answers, f"'{query}'" + (f" for user {user}" if user else "") + (f" in {category}" if category else "")
    )


def predict(
    run: BundlePath,
    requests: Annotated[
        Path, typer.Option(help="Parquet: request_id, user_id or history, timestamp, query; attributes, surface.")
    ],
    output: Annotated[Path, typer.Option(help="Parquet: request_id, rank, item_id, score; a folder with --ray.")],
    k: Count = 100,
    mode: Mode = "fused",
    fitted_on: FittedOn = None,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Do not remove items the history already holds.")
    ] = False,
    ray: Ray = None,
    workers: Annotated[int, typer.Option(help="With --ray: models that answer; 0: one per CPU, less one.")] = 0,
) -> None:
    """Answer a table of requests. By default with the model fitted on train, as in the results' first rows.

    With --ray, REQUESTS may be a folder of Parquet files, which a cluster answers side by side.
    """
    from genrec.inference.predict import default_fit, predict_file

    if ray is None:
        written = predict_file(run, requests, output, k, mode, fitted_on, not keep_seen)
    else:
        from genrec.serving.cluster import predict_folder

        fitted_on = fitted_on or default_fit(run)
        written = predict_folder(run, requests, output, k, mode, not keep_seen, workers, 2048, fitted_on, ray)
    console.print(f"{written} rows: {output}")


def requests(
    run: RunPath,
    output: Annotated[Path, typer.Option(help="Folder for requests.parquet and truth.parquet.")],
    split: Split = "test",
    query_kind: Annotated[
        str | None, typer.Option(help="Searches with this kind of query instead of recommendations.")
    ] = None,
) -> None:
    """Write a split's requests with their histories, and the items that followed, to check our metrics."""
    from genrec.inference.predict import write_requests

    console.print(f"{write_requests(run, output, split, query_kind)} requests: {output}")
