"""Which semantic IDs does generation learn best? Every quantizer, and KHQE with each part on and off, under one model and one budget.

    python scripts/bench/semantic_ids.py configs/amazon-beauty.yaml --output runs/semantic-ids --epochs 6 data.path=/path/to/amazon-beauty

For each row: tokenize with the row's settings, fit the config's network for exactly --epochs epochs on the training split (no choice on
validation), and rank by generation alone over the split's requests. All rows share the prepared dataset, the seed and the requests, so
Recall@10 is compared in pairs over users. A row is written to OUTPUT/rows/NAME.json as soon as it is done; run the same command again and
what is done is kept, a stopped training resumes. OUTPUT/table.md and table.json hold the table.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from pathlib import Path

import numpy as np

from genrec.artifacts import fingerprint, read_json, write_json
from genrec.config import load_config, to_dict
from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.evaluation.metrics import paired_test, per_request_metrics
from genrec.pipeline import Run, stage_prepare
from genrec.retrieval.cooccurrence import CooccurrenceTransition
from genrec.semantic_ids.tokenize import tokenize
from genrec.training.fit import FitPlan, fit

REFERENCE = "rq-opq"
QUANTIZER_ROWS = {name: [f"semantic_ids.quantizer={name}"] for name in (REFERENCE, "rq-kmeans", "rq-vae", "opq", "random")}
PART_ROWS = {  # one part of KHQE changed at a time
    "keywords on": ["semantic_ids.keywords=true"],
    "keywords off": ["semantic_ids.keywords=false"],
    "balance none": ["semantic_ids.balance=none"],
    "balance last-per-code": ["semantic_ids.balance=last-per-code"],
    "balance last-per-parent": ["semantic_ids.balance=last-per-parent"],
    "no OPQ": ["semantic_ids.opq_subcodebooks=0"],
    "residuals keep their length": ["semantic_ids.normalise_residuals=false"],
    "fine-tuned space": ["text.finetune=true"],
    "queries in the fit": ["semantic_ids.fit_queries=true"],
    "text alone": ["semantic_ids.behaviour_share=0"],
    "collisions left": ["semantic_ids.resolve_collisions=false"],
}
COLUMNS = {
    "ICR before": "icr_before", "ICR": "icr", "used L1..2": "used_two", "Gini, worst": "gini", "error": "error", "same L1": "neighbours_one",
    "same L1..2": "neighbours_two", "query L1": "queries_one", "Recall@10": "recall@10", "nDCG@10": "ndcg@10",
}  # fmt: skip
log = logging.getLogger("semantic_ids")


def measure(base: Run, name: str, overrides: list[str], job: argparse.Namespace) -> dict:
    """Fit and score one row; kept in OUTPUT/rows. Raises ``UserError`` where this version does not know one of the row's keys."""
    config = load_config(job.config, [*job.overrides, *overrides, f"training.epochs={job.epochs}"])
    config.data = copy.deepcopy(base.config.data)
    folder = job.output / "work" / name.replace(" ", "-")
    key = fingerprint(3, base.dataset.manifest["key"], to_dict(config), job.epochs, job.split, job.users)
    done = job.output / "rows" / f"{name.replace(' ', '-')}.json"
    if done.is_file() and read_json(done)["key"] == key:
        log.info("%s: kept", name)
        return read_json(done)
    folder.mkdir(parents=True, exist_ok=True)
    for shared in ("dataset", "cooccurrence"):
        if not (folder / shared).exists():
            (folder / shared).symlink_to((base.folder / shared).resolve(), target_is_directory=True)
    run, begun = Run(folder, config), time.process_time()
    tokenize(config, run.dataset, folder / "semantic_ids")
    tokenized = time.process_time() - begun
    fit(config, run.dataset, run.ids, folder / "model", FitPlan(TRAIN, job.epochs))
    ranker = run.ranker("train", fused=False)
    row = {"name": name, "key": key, "overrides": overrides, "tokenize_cpu_s": tokenized} | quality(read_json(folder / "semantic_ids" / "report.json"))
    for kind in (None, *run.dataset.query_kinds):
        requests = run.dataset.requests(job.split, kind)
        if job.users and len(requests) > job.users:
            requests = requests.take(np.sort(np.random.default_rng(0).permutation(len(requests))[: job.users]))
        ranked = ranker.rank(requests, 10, ["generate"])["generate"][0]
        metrics = per_request_metrics(ranked, requests.targets, [10])
        suffix = "" if kind is None else f" search ({kind})"
        row |= {f"{metric}{suffix}": float(metrics[metric].mean()) for metric in ("recall@10", "ndcg@10")}
        row[f"hits{suffix}"] = np.flatnonzero(metrics["recall@10"]).tolist()
        row[f"requests{suffix}"] = len(requests)
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json(done, row)
    return row


def quality(report: dict) -> dict:
    """The report's numbers that the table shows."""
    queries = report.get("queries") or {}
    reachable = list(report["utilisation_reachable"].values())
    neighbours = report["neighbours"]["shared"]
    return {
        "sizes": report["sizes"], "icr_before": report["collision_resolution"]["independent_coding_rate_before"],
        "icr": report["independent_coding_rate"], "used_two": reachable[min(1, len(reachable) - 1)], "gini": max(report["gini"]),
        "error": report["reconstruction_error"][-1], "neighbours_one": neighbours[0], "neighbours_two": neighbours[min(1, len(neighbours) - 1)],
        "queries_one": queries.get("shared", [float("nan")])[0], "utilisation": report["utilisation"], "collapsed": report["quantizer"].get("collapsed", []),
    }  # fmt: skip


def difference(row: dict, reference: dict) -> str:
    """Recall@10 less the reference's, with its interval over the same users."""
    if row["name"] == reference["name"] or row["requests"] != reference["requests"]:
        return ""
    hits = [np.isin(np.arange(row["requests"]), one["hits"]).astype(float) for one in (row, reference)]
    mean, low, high, p = paired_test(*hits, seed=0)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] p {p:.3f}"


def write_table(rows: list[dict], skipped: dict[str, str], job: argparse.Namespace) -> None:
    reference = next((row for row in rows if row["name"] == REFERENCE), rows[0])
    kinds = [key.removeprefix("recall@10 ") for key in reference if key.startswith("recall@10 ")]
    header = ["row", "sizes", *COLUMNS, f"Recall@10 less {reference['name']}'s", *(f"Recall@10, {kind}" for kind in kinds)]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for row in rows:
        cells = [f"{row[key]:.4f}" if "@" in key else f"{row[key]:.3f}" for key in COLUMNS.values()]
        cells += [difference(row, reference), *(f"{row[f'recall@10 {kind}']:.4f}" for kind in kinds)]
        lines.append("| " + " | ".join([row["name"], "-".join(map(str, row["sizes"])), *cells]) + " |")
    lines += ["", f"Generation alone, {job.epochs} epochs, {job.split} split, {reference['requests']} users, already-had items removed."]
    lines += [f"Not run: {name} ({reason})." for name, reason in skipped.items()]
    (job.output / "table.md").write_text("\n".join(lines) + "\n")
    write_json(job.output / "table.json", [{key: value for key, value in row.items() if not key.startswith("hits")} for row in rows])
    print("\n".join(lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6, help="training budget of every row")
    parser.add_argument("--split", default="valid", choices=("valid", "test"), help="valid: the table chooses the default")
    parser.add_argument("--users", type=int, default=0, help="score at most so many requests (0: all)")
    parser.add_argument("--rows", default=",".join([*QUANTIZER_ROWS, *PART_ROWS]), help="names of rows, as in the table", metavar="NAME[,NAME]")
    parser.add_argument("--row", action="append", default=[], metavar="NAME:KEY=VALUE[,KEY=VALUE]", help="a row of your own")
    job, job.overrides = parser.parse_known_args()
    wrong = [value for value in job.overrides if "=" not in value or value.startswith("-")]
    if wrong:
        parser.error(f"unknown argument {wrong[0]}")
    known = QUANTIZER_ROWS | PART_ROWS
    job.rows = [name for name in job.rows.split(",") if name]
    for text in job.row:
        name, _, settings = text.partition(":")
        known[name] = settings.split(",")
        job.rows.append(name)
    for name in job.rows:
        if name not in known:
            parser.error(f"--rows: '{name}' is not one of {', '.join(known)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        base = Run.create(job.config, [*job.overrides, f"output={job.output}", "name=base"])
        stage_prepare(base)
        if not (base.folder / "cooccurrence" / "cooccurrence.npz").is_file():
            (base.folder / "cooccurrence").mkdir(exist_ok=True)
            CooccurrenceTransition().fit(base.dataset.histories(TRAIN), base.dataset.n_items).save(base.folder / "cooccurrence" / "cooccurrence.npz")
        rows, skipped = [], {}
        for name in job.rows:
            try:
                rows.append(measure(base, name, known[name], job))
            except UserError as error:
                if "unknown key" not in str(error):
                    raise
                skipped[name] = str(error)
                continue
            write_table(rows, skipped, job)
    except UserError as error:
        sys.exit(f"error: {error}")
    if rows:
        write_table(rows, skipped, job)


if __name__ == "__main__":
    main()
