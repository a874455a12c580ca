"""Daily updates against full refits: quality on the next day's second half, and CPU time.

    python scripts/bench/daily.py EVENTS.parquet ITEMS.parquet OUT [--days 2] [--epochs 3] [--steps 200]

A run is trained on all but the last days. Each further day is added by ``genrec update`` (days of a refused update come
again with the next one), and a run of the same settings is trained from scratch on the same log. Both answer the
requests of the second half of the day that was held out; its first half is validation data for both.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import write_json
from genrec.config.load import to_dict
from genrec.evaluation.metrics import bootstrap_interval, paired_test, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.pipeline.stages import fit_model_and_reranker, stage_tokenize, stage_train
from genrec.pipeline.update import DAY, update
from genrec.runs.run import Run

K = 10


def main() -> None:
    """Run the comparison and print one row a day."""
    parser = argparse.ArgumentParser()
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    events = pl.read_parquet(arguments.events).sort("timestamp", maintain_order=True)
    day = events["timestamp"] // DAY
    first = int(day.max()) - arguments.days + 1
    events.filter(day < first).write_parquet(out / "base.parquet")
    run = Run.create(None, [
        f"output={out}", "name=run", "data.reader=table", f"data.path={out / 'base.parquet'}",
        f"data.options={{items: {arguments.items.resolve()}}}", "split.kind=global-time",
        "model.dim=32", "model.heads=2", "model.layers=1", "training.refit=false",
        f"training.epochs={arguments.epochs}", "training.decoder_epochs=1", "evaluation.baselines=[]",
    ])  # fmt: skip
    seconds = cpu(lambda: stage_train(run))
    print(f"base: {seconds:.0f} CPU seconds, {len(run.dataset.items)} events", flush=True)
    pending: list[int] = []
    rows = []
    for number in range(first, int(day.max()) + 1):
        pending.append(number)
        rows.append(one_day(out, events.filter(day.is_in(pending)), number, arguments.steps))
        if rows[-1]["accepted"]:
            pending = []
        print(rows[-1], flush=True)
    write_json(out / "daily.json", {"rows": rows})


def one_day(out: Path, new: pl.DataFrame, number: int, steps: int) -> dict:
    """Update the run by new events, train another from scratch on the same log, and compare them."""
    log = out / f"new-{number}.parquet"
    new.write_parquet(log)
    before = Run.open(out / "run").ranker("train")
    known = Run.open(out / "run").dataset.n_items
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
    values["before"] = ndcg(updated, before, known)
    difference = paired_test(values["update"], values["refit"], 0)
    result = {"day": number, "accepted": report.decision.kept, "reasons": report.decision.reasons}
    result |= {"requests": len(values["update"]), "update_cpu": update_seconds, "refit_cpu": refit_seconds}
    result |= {name: [float(array.mean()), *bootstrap_interval(array, 0)] for name, array in values.items()}
    return result | {"update_minus_refit": [float(value) for value in difference], "seconds": report.seconds}


def ndcg(run: Run, ranker, known: int | None = None) -> np.ndarray:
    """nDCG@10 of each recommendation request of the test split; ``known``: only items below it are read."""
    from genrec.pipeline.update import _without_new_items

    requests = run.dataset.requests("test", None)
    asked = requests if known is None else _without_new_items(requests, known)
    ids = ranker.rank(asked, SearchOptions(K))["fused"][0]
    return per_request_metrics(ids, requests.targets, [K])[f"ndcg@{K}"]


def cpu(work) -> float:
    """CPU seconds of a call, all threads."""
    start = time.process_time()
    work()
    return round(time.process_time() - start, 1)


if __name__ == "__main__":
    main()
