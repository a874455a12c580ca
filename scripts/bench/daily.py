"""Daily updates of KuaiRand against full refits: quality on the next hours, and CPU time.

    python scripts/bench/daily.py KUAIRAND_FOLDER OUT [--days 3] [--users 0.4] [--steps 100] [key=value ...]

The log is cut into days (UTC), of a fraction of the users. A run of ``configs/kuairand.yaml`` with the overrides is
trained on all but the last days. Each further day is added by ``genrec update`` (days of a refused update come again
with the next one), and a run of the same settings is made from scratch of the same log. Both answer the requests of the
second half of the day that is held out; its first half is validation data for both. ``before`` is the run as it was
before the day, with the histories of the day.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import write_json
from genrec.config.load import to_dict
from genrec.evaluation.metrics import bootstrap_interval, paired_test, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.pipeline.stages import fit_model_and_reranker, stage_tokenize, stage_train
from genrec.pipeline.update import DAY, update
from genrec.pipeline.update_gate import without_new_items
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run

K = 10
LOG = "log_standard_4_22_to_5_08_pure.csv.gz"


def main() -> None:
    """Run the comparison and print one row a day."""
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--users", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    out = arguments.out
    days = cut_into_days(arguments.log, out, arguments.days, arguments.users)
    run = Run.create("configs/kuairand.yaml", [
        f"output={out}", "name=run", f"data.path={out / 'base'}", "training.refit=false", "evaluation.baselines=[]",
        *arguments.overrides,
    ])  # fmt: skip
    seconds = cpu(lambda: stage_train(run))
    print(f"base: {seconds:.0f} CPU seconds, {len(run.dataset.items)} events, {run.dataset.n_items} items", flush=True)
    pending: list[pl.DataFrame] = []
    rows = []
    for number, day in enumerate(days):
        pending.append(day)
        rows.append(one_day(out, pl.concat(pending), number, arguments.steps))
        pending = [] if rows[-1]["accepted"] else pending
        print(rows[-1], flush=True)
    write_json(out / "daily.json", {"base_cpu": seconds, "rows": rows})


def cut_into_days(log: Path, out: Path, n_days: int, users: float) -> list[pl.DataFrame]:
    """Write all but the last days to ``out/base``, with the tables of items and users; returns the last days."""
    (out / "base").mkdir(parents=True, exist_ok=True)
    events = pl.read_csv(log / LOG, infer_schema=False)
    kept = (pl.col("user_id").hash(0) % 10_000) < users * 10_000
    day = pl.col("time_ms").cast(pl.Int64) // (1000 * DAY)
    events = events.filter(kept).with_columns(day.alias("day"))
    first = events["day"].max() - n_days + 1
    events.filter(pl.col("day") < first).drop("day").write_csv(out / "base" / "log_standard_base.csv")
    for name in ("user_features_pure.csv.gz", "video_features_basic_pure.csv.gz"):
        shutil.copy2(log / name, out / "base" / name)
    return [events.filter(pl.col("day") == first + number).drop("day") for number in range(n_days)]


def one_day(out: Path, new: pl.DataFrame, number: int, steps: int) -> dict:
    """Update the run by new events, make another from scratch of the same log, and compare them."""
    log = out / f"day-{number}"
    log.mkdir(exist_ok=True)
    new.write_csv(log / f"log_standard_{number}.csv")
    before, n_known = Run.open(out / "run").ranker("train"), Run.open(out / "run").dataset.n_items
    reports = []
    update_seconds = cpu(lambda: reports.append(update(out / "run", log, steps)))
    report = reports[0]
    updated = Run.open(out / "run" if report.decision.kept else out / "run.update")
    folder = out / f"refit-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_json(folder / "config.json", to_dict(updated.config))
    refit = Run(folder, updated.config)
    refit_seconds = cpu(lambda: (stage_tokenize(refit), fit_model_and_reranker(refit)))
    values = {"update": ndcg(updated, updated.ranker("train")), "refit": ndcg(refit, refit.ranker("train"))}
    values["before"] = ndcg(updated, before, n_known)
    np.savez(out / f"ndcg-{number}.npz", **values)
    difference = paired_test(values["update"], values["refit"], 0)
    result = {"day": number, "accepted": report.decision.kept, "reasons": report.decision.reasons}
    result |= {"requests": len(values["update"]), "update_cpu": update_seconds, "refit_cpu": refit_seconds}
    result |= {name: [float(array.mean()), *bootstrap_interval(array, 0)] for name, array in values.items()}
    gate = {row.name: [row.before, row.after] for row in report.decision.rows}
    return result | {"update_minus_refit": [float(value) for value in difference], "seconds": report.seconds,
                     "gate": gate, "drift": report.drift["reasons"]}  # fmt: skip


def ndcg(run: Run, ranker: Ranker, n_known: int | None = None) -> np.ndarray:
    """nDCG@10 of each recommendation of the test split; ``n_known``: only events of the first so many items are read."""
    requests = run.dataset.requests("test", None)
    readable = requests if n_known is None else without_new_items(requests, n_known)
    ids = ranker.rank(readable, SearchOptions(K))["fused"].ids
    return per_request_metrics(ids, requests.targets, [K])[f"ndcg@{K}"]


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of a call, all threads."""
    start = time.process_time()
    work()
    return round(time.process_time() - start, 1)


if __name__ == "__main__":
    main()
