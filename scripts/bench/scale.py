"""What every stage costs as the catalogue grows: CPU time, peak memory and growth per tenfold catalogue.

    python scripts/bench/scale.py --minutes 10                      # 5,000, 50,000, ... items, as far as ten minutes go
    python scripts/bench/scale.py --sizes 5000 1000000 --steps 8    # chosen sizes

The log is simulated. Each stage runs in a process of its own, with one thread, so that its peak memory is its own. It
reports the CPU time of that process, which other work on the machine hardly changes. Networks are fitted for
``--steps`` micro-batches: weights do not change what a step or a request costs. A size is begun only while the
minutes last. Growth is the factor by which a value grows when the number of items grows tenfold. The script measures
and fails nothing: a stage that fails is reported as such.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

SIZES = (5_000, 50_000, 300_000, 1_000_000)
MODES = ("fused", "retrieve", "generate")
ADDED = 10_000
MIN_EVENTS, MIN_USERS = 200_000, 20_000  # a smaller log would make smaller training steps
Values = dict[str, float]


def overrides(items: int, options: argparse.Namespace) -> list[str]:
    """Settings of the run of one size."""
    log = {
        "n_items": items,
        "n_events": options.events or max(int(items * options.events_per_item), MIN_EVENTS),
        "n_users": options.users or max(items // 4, MIN_USERS),
        "n_categories": int(np.clip(items // 500, 10, 400)),
        "n_brands": int(np.clip(items // 250, 10, 2000)),
        "seed": 1,
    }
    settings = {
        "data.reader": "simulator",
        "data.keep_unseen_items": "true",
        "model.dim": options.dim,
        "model.layers": 1,
        "model.heads": 2,
        "training.epochs": 1,
        "training.decoder_epochs": 1,
        "training.refit": "false",
        "training.valid_requests": 64,
        "training.accelerator": "cpu",
        "evaluation.baselines": "[]",
        "output": options.output,
        "name": f"items-{items}",
    }
    return [f"data.options.{key}={value}" for key, value in log.items()] + [
        f"{key}={value}" for key, value in (settings | dict(part.split("=", 1) for part in options.set)).items()
    ]


@contextmanager
def measured(values: Values, name: str) -> Iterator[None]:
    """Add the CPU seconds of a block to ``values``."""
    begin = time.process_time()
    yield
    values[f"{name} s"] = time.process_time() - begin


def percentiles(run: Callable[[int], Any], repeats: int) -> float:
    """The median CPU milliseconds of ``run(0)``, ``run(1)``, ... after three calls that warm up."""
    times = []
    for number in range(-3, repeats):
        begin = time.process_time()
        run(number)
        times.append(time.process_time() - begin)
    return float(np.median(times[3:])) * 1000


def resident() -> float:
    """Gigabytes this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e9


# --- stages: each runs in a process of its own and returns what it measured ---


def prepare(run, options: argparse.Namespace) -> Values:
    """Simulate and prepare the log."""
    from genrec.pipeline.stages import stage_prepare

    values: Values = {}
    with measured(values, "simulate and prepare"):
        stage_prepare(run)
    return values | {"events (thousands)": run.dataset.info["events"] / 1000}


def tokenize(run, options: argparse.Namespace) -> Values:
    """Text vectors, codebooks and codes."""
    from genrec.semantic_ids.tokenize import tokenize as make

    values: Values = {}
    with measured(values, "tokenize"):
        make(run.config, run.dataset, run.folder / "semantic_ids")
    return values


def neighbours(run, options: argparse.Namespace) -> Values:
    """The tables of anchors, which every fit of a backbone fills."""
    from genrec.model.anchors import AnchorTables
    from genrec.training.fit import fill_anchors

    tables, values = AnchorTables(run.dataset.n_items, 8, True), {}
    with measured(values, "anchor tables"):
        fill_anchors(tables, run.dataset, 0)
    return values


def features(run, options: argparse.Namespace) -> Values:
    """Co-occurrence and the other counts behind candidate features, and BM25."""
    from genrec.pipeline.stages import count_candidate_features

    values: Values = {}
    with measured(values, "candidate features"):
        count_candidate_features(run)
    return values


def fit(run, options: argparse.Namespace) -> Values:
    """Backbone and decoder: the cost of a step, and of a validation pass."""
    import lightning as L

    from genrec.runs.stages import model_fits
    from genrec.training import fit as fitting

    values: Values = {}

    class Clock(L.Callback):
        """The CPU time of training steps and of validation."""

        def __init__(self) -> None:
            self.steps: list[float] = []
            self.validation = 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            self.begin = time.process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps.append(time.process_time() - self.begin)

        def on_validation_start(self, *_: Any) -> None:
            self.begin = time.process_time()

        def on_validation_end(self, *_: Any) -> None:
            self.validation += time.process_time() - self.begin

    make_trainer = fitting.make_trainer
    for one in model_fits(run.config):
        clock = Clock()

        def limited(*arguments: Any, clock: Clock = clock) -> L.Trainer:
            trainer = make_trainer(*arguments)
            trainer.limit_train_batches = options.steps
            trainer.callbacks.append(clock)
            return trainer

        fitting.make_trainer = limited
        name = "decoder" if one.backbone else "backbone"
        with measured(values, f"fit of the {name}"):
            fitting.fit(
                one.config, run.dataset, run.ids, run.folder / one.name, one.resolved(run.folder), lambda: run.lexical
            )
        parts = fitting.CPU_PARTS
        whole = [sum(clock.steps[begin : begin + parts]) for begin in range(parts, len(clock.steps), parts)]
        values[f"{name} step ms"] = float(np.median(whole)) * 1000
        values[f"validation of the {name} s"] = clock.validation
    return values


def rerank(run, options: argparse.Namespace) -> Values:
    """The fit of the re-ranker on a limited number of requests."""
    from genrec.pipeline import reranking

    values: Values = {}
    reranking.MAX_REQUESTS.update(recommendation=options.requests, search=options.requests)
    reranking.MAX_TRAINING_REQUESTS = options.requests
    with measured(values, "re-ranker"):
        reranking.fit_reranker(run)
    return values


def evaluate(run, options: argparse.Namespace) -> Values:
    """Lists of test requests in all modes, filtered and raw, as the results table needs them."""
    from genrec.evaluation.protocol import Evaluation

    values: Values = {}
    run.config.evaluation.max_requests = options.requests
    evaluation = Evaluation(run, "test")
    with measured(values, "evaluation"):
        evaluation.add_ours("train")
    n = sum(len(task.requests) for task in evaluation.tasks)
    return {"evaluation, s per 1,000 requests": values["evaluation s"] / n * 1000}


def export(run, options: argparse.Namespace) -> Values:
    """The bundle."""
    from genrec.inference.bundle import export as write

    values: Values = {}
    with measured(values, "export"):
        folder = write(run.folder, run.folder.parent / f"{run.folder.name}-bundle")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return values | {"bundle GB": size / 1e9}


def requests(run, options: argparse.Namespace) -> Values:
    """Single requests and batches against the loaded bundle."""
    from genrec.inference.recommender import Filters, RecommendationRequest, Recommender

    values: Values = {}
    with measured(values, "load"):
        model = Recommender.load(run.folder.parent / f"{run.folder.name}-bundle")
    values["resident GB"] = resident()
    users, queries = _people(model, options.batch)
    for mode in MODES:
        values[f"recommend {mode} ms"] = percentiles(
            lambda n, mode=mode: model.recommend(users[n], mode=mode), options.repeats
        )
    if queries:
        values["search fused ms"] = percentiles(
            lambda n: model.search(queries[n % len(queries)], users[n]), options.repeats
        )
    category = model.snapshot.categories.names[-1]
    values["recommend in a category ms"] = percentiles(
        lambda n: model.recommend(users[n], filters=Filters(category=(category,))), options.repeats
    )
    values["recommend without history ms"] = percentiles(lambda n: model.recommend(None), options.repeats)
    values["similar ms"] = percentiles(lambda n: model.similar(model.snapshot.item_ids[n]), options.repeats)
    begin = time.process_time()
    model.ask([RecommendationRequest(user) for user in users])
    values["fused, requests per second"] = len(users) / (time.process_time() - begin)
    return values | {"resident after requests GB": resident()}


def add(run, options: argparse.Namespace) -> Values:
    """Items added to the loaded bundle, one by one, then many, and merged into the trie while requests are answered."""
    from genrec.inference.recommender import Recommender

    values: Values = {}
    model = Recommender.load(run.folder.parent / f"{run.folder.name}-bundle")
    users, _ = _people(model, 23)
    for user in users[3:]:  # what requests make once is no cost of growth
        model.recommend(user)
    before, table = resident(), model.snapshot.table
    rows = np.random.default_rng(0).integers(0, len(table), ADDED + 100)
    new = table[rows.tolist()].with_row_index("number")
    new = new.with_columns(item_id="new-" + new["number"].cast(str)).drop("number")
    model.add_items(new[:1])
    begin = time.process_time()
    for number in range(1, 51):
        model.add_items(new[number : number + 1])
    values["add one item ms"] = (time.process_time() - begin) / 50 * 1000
    begin = time.process_time()
    model.add_items(new[100:])
    values["add 10,000 items s"] = time.process_time() - begin
    begin = time.process_time()
    model.recommend(users[1])
    values["next request ms"] = (time.process_time() - begin) * 1000
    values["memory after / before"] = resident() / before
    merge, answers = threading.Thread(target=model.merge_items), 0
    begin, own = time.process_time(), time.thread_time()
    merge.start()
    while merge.is_alive():
        model.recommend(users[2])
        answers += 1
    own = time.thread_time() - own
    values["merge s"], values["answers during it"] = time.process_time() - begin - own, answers
    values["ms of each answer during it"] = own / max(answers, 1) * 1000
    return values | {"memory after the merge / before": resident() / before}


# --- stand-ins for the slow stages: what a request costs does not depend on what codes and weights say ---


def random_ids(run, options: argparse.Namespace) -> Values:
    """Semantic IDs of random codes and clustered random text vectors, in place of ``tokenize``."""
    import polars as pl
    from safetensors.numpy import save_file

    from genrec.artifacts.folders import atomic_folder, write_json
    from genrec.semantic_ids.item_vectors import HALF_ITEMS
    from genrec.semantic_ids.quantizers import Codebooks, default_sizes
    from genrec.semantic_ids.space import ItemSpace
    from genrec.semantic_ids.text_space import TextSpace
    from genrec.semantic_ids.tokenize import KIND, tokenize_key
    from genrec.text.factory import fit_encoder

    data, draw = run.dataset, np.random.default_rng(0)
    n, key = data.n_items, tokenize_key(run.config, run.dataset)
    levels, books, size = default_sizes(n)
    sizes = [*levels, *[size] * books]
    encoder = fit_encoder(run.config.text, data.item_table.head(5_000), 0)
    nothing = pl.DataFrame(schema={"item_id": pl.String, "keyword": pl.String, "type": pl.String})
    words = TextSpace(encoder, None, np.zeros((0, encoder.dim), np.float32), nothing)
    centres = draw.normal(size=(max(n // 500, 10), encoder.dim)).astype(np.float32)
    width = encoder.dim + 1  # text, and the one dimension of an empty co-consumption
    codebooks = Codebooks([draw.normal(size=(one, width)).astype(np.float32) for one in sizes])
    space = ItemSpace(np.zeros((encoder.dim, 1), np.float32), 0.0)
    with atomic_folder(run.folder / "semantic_ids", KIND, key) as folder:
        words.save(folder)
        dtype = np.float16 if n > HALF_ITEMS else np.float32
        text = np.lib.format.open_memmap(folder / "text.npy", "w+", dtype, (n, encoder.dim))
        for begin in range(0, n, 1 << 16):
            rows = slice(begin, min(begin + (1 << 16), n))
            count = rows.stop - begin
            near = centres[draw.integers(0, len(centres), count)]
            near = near + 0.5 * draw.random((count, encoder.dim), np.float32)
            text[rows] = near / np.linalg.norm(near, axis=1, keepdims=True)
        text.flush()
        codes = np.column_stack([draw.integers(0, one, n) for one in sizes])
        np.save(folder / "codes.npy", codes.astype(np.int32))
        codebooks.save(folder / "codebooks.safetensors", key)
        save_file(space.to_arrays(), folder / "space.safetensors")
        write_json(folder / "drift.json", {})
    return {}


def random_weights(run, options: argparse.Namespace) -> Values:
    """A network as it is before training, with counted anchors, and a re-ranker before fitting."""
    from safetensors.torch import save_file

    from genrec.artifacts.folders import atomic_folder, write_json
    from genrec.config.load import to_dict
    from genrec.model.saved import RESOLVED
    from genrec.ranking.reranker import Reranker
    from genrec.runs.stages import RERANKER_KIND, model_fits, reranker_key
    from genrec.training.fit import fill_anchors, new_network, with_rules
    from genrec.training.plan import model_key

    for one in model_fits(run.config):
        config, plan = with_rules(one.config, run.dataset), one.resolved(run.folder)
        network = new_network(config, run.dataset, run.ids, plan.generate)
        if plan.generate:
            fill_anchors(network.anchor_tables, run.dataset, 0)
        key = model_key(one.config, run.ids.key, plan)
        info = {
            "epochs": 1,
            "time_base": network.time_base,
            "generate": plan.generate,
            "network": "genrec",
            "fitted_on": "train",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }
        with atomic_folder(run.folder / one.name, "model", key, info) as folder:
            weights = network.state_dict() if plan.generate else {}
            save_file(weights, folder / "model.safetensors")
            for name, settings in (("config.json", one.config), (RESOLVED, config)):
                write_json(folder / name, to_dict(settings))
    with atomic_folder(run.folder / "reranker", RERANKER_KIND, reranker_key(run.folder, run.config)) as folder:
        for task in ("recommendation", "search"):
            save_file(Reranker.default().state(), folder / f"{task}.safetensors")
    return {}


def _people(model, count: int) -> tuple[list[str], list[str]]:
    """Users of the data and logged queries, drawn by a fixed seed."""
    data, draw = model.dataset, np.random.default_rng(0)
    busy = np.flatnonzero(np.diff(data.offsets) > 2)
    users = data.user_ids[draw.choice(busy, count).tolist()].to_list()
    queries = [data.query_texts[n] for n in draw.integers(0, len(data.query_texts), count)] if data.query_texts else []
    return users, queries


STAGES = {
    stage.__name__: stage
    for stage in (prepare, tokenize, neighbours, features, fit, rerank, evaluate, export, requests, add)
}
STAND_INS: dict[str, Callable] = {"tokenize": random_ids, "fit": random_weights}


def run_stage(name: str, items: int, options: argparse.Namespace) -> None:
    """One stage of one size, in this process; the last line of the output is its JSON."""
    import torch

    from genrec.runs.run import Run

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    run = Run.create(None, overrides(items, options))
    stage = STAGES[name]
    if options.random and name in STAND_INS:
        stage = STAND_INS[name]
    values = stage(run, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(values | {f"{name}: peak GB": peak}))


def in_child(name: str, items: int, options: argparse.Namespace) -> Values | None:
    """One stage in a process of its own; None where it fails."""
    command = [sys.executable, __file__, *sys.argv[1:], "--stage", name, "--items", str(items)]
    threads = {key: "1" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} at {items:,} items failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def growth(values: dict[int, float]) -> str:
    """Growth per tenfold catalogue, from the smallest to the largest size."""
    sizes = sorted(size for size, value in values.items() if value > 0)
    if len(sizes) < 2:
        return ""
    small, large = sizes[0], sizes[-1]
    return f"{(values[large] / values[small]) ** (1 / np.log10(large / small)):.2f}"


def table(results: dict[int, Values]) -> str:
    """The results as Markdown: a row per value, a column per size, and the growth."""
    sizes = sorted(results)
    names = dict.fromkeys(name for size in sizes for name in results[size])
    lines = ["| | " + " | ".join(f"{size:,}" for size in sizes) + " | per tenfold |", "|---" * (len(sizes) + 2) + "|"]
    for name in names:
        values = {size: results[size][name] for size in sizes if name in results[size]}
        cells = [f"{values[size]:.3g}" if size in values else "" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {growth(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure size after size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="no size is begun that would end later")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of items")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--events-per-item", type=float, default=5)
    parser.add_argument("--events", type=int, default=0, help="events of every size, instead of --events-per-item")
    parser.add_argument("--users", type=int, default=0, help="users of every size, instead of a quarter of the items")
    parser.add_argument("--dim", type=int, default=64, help="width of the backbone")
    parser.add_argument("--steps", type=int, default=32, help="micro-batches of each fit; four make a step")
    parser.add_argument("--requests", type=int, default=500, help="requests of re-ranker and evaluation")
    parser.add_argument("--repeats", type=int, default=20, help="single requests behind a median")
    parser.add_argument("--batch", type=int, default=256, help="requests answered at once")
    parser.add_argument("--random", action="store_true", help="random codes and weights: no tokenize, no training")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--output", default="runs/scale", help="folder of the runs, kept for a second look")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.random:
        options.stages = [name for name in options.stages if name not in ("neighbours", "rerank")]
    if options.stage:
        return run_stage(options.stage, options.items, options)
    begin, last, results = time.monotonic(), 0.0, {}
    for number, items in enumerate(options.sizes):
        left = options.minutes * 60 - (time.monotonic() - begin)
        expected = last * items / options.sizes[number - 1] if number else 0.0
        if expected > left:
            print(f"{items:,} items would take about {expected / 60:.0f} minutes; {left / 60:.0f} are left")
            break
        start, results[items] = time.monotonic(), {}
        for name in options.stages:
            found = in_child(name, items, options)
            results[items] |= found or {}
            print(f"{items:,} items, {name}: {json.dumps(found)}", flush=True)
        last = time.monotonic() - start
    print(table(results))


if __name__ == "__main__":
    main()
