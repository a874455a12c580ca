"""Time of one whole request, from item ids to titles: prompt, reasoning, beam 50, top 10, for a run's network or an
untrained one of another size.

    python scripts/bench/request.py runs/amazon-beauty                                      # the run's own network
    python scripts/bench/request.py runs/amazon-beauty model.max_length=60      # an untrained one
    over the run's catalogue

Histories are drawn items. Wall and processor milliseconds of one thread, after ten requests to warm up; the tasks take
turns.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from genrec import Recommender
from genrec.config.load import with_overrides
from genrec.model.network import GenerativeRecommender
from genrec.ranking.candidates import CandidateGenerator
from genrec.runs.run import Run

TASKS = ("generate", "retrieve", "fused", "search")


def untrained(model: Recommender, run: Run, overrides: list[str]) -> None:
    """Put an untrained network of another size in the place of the run's."""
    config = with_overrides(run.config, overrides)
    ranker, old = model.ranker, model.ranker.generator
    torch.manual_seed(0)
    network = GenerativeRecommender(
        config.model, old.network.catalogue, len(run.dataset.actions_chain), old.network.time_base
    ).eval()
    if network.anchor_tables is not None and old.network.anchor_tables is not None:
        network.anchor_tables.load_state_dict(old.network.anchor_tables.state_dict())
    ranker.model, ranker.settings = config.model, config.decoding
    ranker.generator = CandidateGenerator(network, old.features, config.decoding, old.lexical)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "overrides", nargs="*", help="key=value: an untrained network of this size instead of the run's"
    )
    parser.add_argument("--history", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", choices=TASKS, help="only a profile of this task")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, run = Recommender.load(options.run), Run.open(options.run)
    if options.overrides:
        untrained(model, run, options.overrides)
    draw = np.random.default_rng(0)
    items, titles = model.snapshot.item_ids, [title for title in model.snapshot.titles if title]

    def ask(task: str) -> None:
        history = [items[place] for place in draw.integers(len(items), size=options.history)]
        if task == "search":
            model.search(" ".join(titles[draw.integers(len(titles))].split()[:3]), history=history, k=10)
        else:
            model.recommend(history=history, k=10, mode=task)

    for task in TASKS * 10:
        ask(task)
    if options.profile:
        with torch.profiler.profile() as profile:
            for _ in range(options.repeats):
                ask(options.profile)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=50))
        return
    spent: dict[str, list] = {task: [] for task in TASKS}
    for task in TASKS * options.repeats:
        wall, cpu = time.perf_counter(), time.process_time()
        ask(task)
        spent[task].append(((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3))
    rows = []
    for task, pairs in spent.items():
        wall, cpu = np.array(pairs).T
        rows.append({"task": task, "p50": round(float(np.median(wall)), 2), "best": round(float(wall.min()), 2), "p99": round(float(np.percentile(wall, 99)), 2),
                     "cpu p50": round(float(np.median(cpu)), 2)})  # fmt: skip
        print(rows[-1], flush=True)
    if options.output:
        options.output.write_text(
            json.dumps({"overrides": options.overrides, "history": options.history, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
