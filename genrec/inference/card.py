"""The model card: what a bundle was made from, how good it was measured to be, and what it may be used for."""

from __future__ import annotations

import logging
import time

import torch

from genrec import __version__
from genrec.artifacts.folders import read_json
from genrec.data.registry import list_datasets

log = logging.getLogger(__name__)
_METRICS = ("recall@10", "ndcg@10")
_PEOPLE = {True: "holds the histories of the users it was made from (personal data)", False: "holds no histories"}


def model_card(run, fitted_on: str, size: int, users: bool, licence: str | None, programs: dict) -> dict:
    """Everything the card says, JSON-ready.

    ``size``: bytes of the bundle's files; ``programs``: the parity report of the export.
    """
    info, config = run.dataset.info, run.config
    terms = next((known.terms for known in list_datasets() if known.name == config.data.fetch), None)
    measured: dict = {"rows": [], "meta": {}}
    if (fault := run.stages.fault("results")) is None:
        measured = read_json(run.results() / "metrics.json")
    elif run.results().is_dir():
        log.warning("the model card holds no metrics: %s", fault)
    rows = [row for row in measured["rows"] if row["fitted_on"] == fitted_on]
    return {
        "name": config.name, "genrec": __version__, "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "fitted_on": fitted_on, "bytes": size, "holds_users": users,
        "data": {"reader": config.data.reader, "name": config.data.fetch,
                 "terms": terms or "not stated; the terms of the training log apply",
                 **{name: info[name] for name in ("users", "items", "events", "actions", "synthetic_queries")}},
        "split": {"kind": info["split"], "fingerprint": info["split_fingerprint"], "tie_rule": info["tie_rule"]},
        "licence": licence or "not stated", "programs": programs, "commit": measured["meta"].get("commit"),
        "metrics": [{"model": row["model"], "task": row["task"], "query_kind": row["query_kind"],
                     **{name: round(row["metrics"][name], 4) for name in _METRICS}} for row in rows],
    }  # fmt: skip


def card_text(card: dict) -> str:
    """The card as Markdown."""
    data, split = card["data"], card["split"]
    counts = ", ".join(f"{data[name]:,} {name}" for name in ("users", "items", "events"))
    lines = [
        f"# {card['name']}", "",
        f"A genrec bundle: one model for recommendation and search, fitted on {card['fitted_on']}. "
        "Serve it with `genrec serve FOLDER`.", "",
        f"* **Data**: {data['name'] or 'a log read by ' + data['reader']}: {counts}; "
        f"feedback chain {' < '.join(data['actions'])}.",
        f"* **Terms of the data**: {data['terms']}",
        f"* **Licence of the model**: {card['licence']}",
        f"* **Split**: {split['kind']}, fingerprint {split['fingerprint']}; ties: {split['tie_rule']}.",
        f"* **People**: {_PEOPLE[bool(card['holds_users'])]}.",
        f"* **Made with**: genrec {card['genrec']}, torch {card['torch']}, {card['created']}; "
        f"{card['bytes'] / 1e6:.1f} MB.",
    ]  # fmt: skip
    if data["synthetic_queries"]:
        lines.append(
            "* **Queries are synthetic**: made from the items by rule. Search metrics say nothing about typed queries."
        )
    if card["metrics"]:
        lines += [
            "",
            "Test split, full ranking, already-had items removed:",
            "",
            "| model | task | Recall@10 | nDCG@10 |",
            "| --- | --- | --- | --- |",
        ]
        for row in card["metrics"]:
            task = row["task"] if row["query_kind"] is None else f"{row['task']} ({row['query_kind']} queries)"
            lines.append(f"| {row['model']} | {task} | {row['recall@10']:.4f} | {row['ndcg@10']:.4f} |")
    else:
        lines += ["", "No test metrics: the run was not evaluated before the export."]
    return "\n".join(lines) + "\n"
