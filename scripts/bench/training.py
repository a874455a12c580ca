"""Training throughput: real events per second against the same network padded to the maximum, and the share of the
products' own rate.

    python scripts/bench/training.py --dataset runs/amazon-beauty/dataset
    python scripts/bench/training.py                        # simulated lengths, 6.7 events on average
    python scripts/bench/training.py --device cuda --dim 1024 --layers 12 --heads 16 --batch 512

*ours*: a step in parts of similar lengths, a request only where an event is predicted; the whole training step
(collation, forward, backward,
clipping, AdamW). *padded*: the same network and optimiser, every sequence padded to ``--length`` events, with a request
and a softmax over all items at
every position, as most open code trains. Both in turn in one process, on batches that stand for an epoch; the settings
are those of
``configs/amazon-beauty.yaml`` but for anchors and distillation. Codes are learnt as a run learns them, by the code
decoder alone on the fixed
rest; "retrieval, then codes" is what an event costs in the two trainings together.
"Products" are the matrix products that the real tokens need (forward and backward), timed alone in the same
rounds; their share of the step is how close it comes to doing nothing else.
Each step and each product is run three times and the fastest counts. With one thread the clock is the process's CPU
time, so that other
work on the machine matters less.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import build_trie
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, Dataset
from genrec.data.sequences import make_windows
from genrec.model.batch import Batch
from genrec.model.collate import Collator
from genrec.model.network import GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.objectives.walked_nodes import walked_nodes
from genrec.semantic_ids.quantizers import default_sizes
from genrec.training.batches import WindowBatches, request_counts
from genrec.training.fit import CPU_PARTS
from genrec.training.module import TrainingModule


def simulated(options: argparse.Namespace):
    """A log of random items whose users have 6.7 events on average, at least 3, with Beauty's long tail; random
    semantic IDs."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(3 + rng.pareto(1.9, options.users) * 3.3, 200).astype(np.int64)
    total = int(lengths.sum())
    none = np.full(total, -1, np.int32)
    data = SimpleNamespace(
        offsets=np.concatenate([[0], np.cumsum(lengths)]), items=rng.integers(0, options.items, total).astype(np.int32), queries=none,
        timestamps=np.sort(rng.integers(0, 10**8, total)), actions=np.zeros(total, np.int16), info={"synthetic_queries": True},
        actions_chain=["event"], target_level=0, lengths=lengths,
    )  # fmt: skip
    sizes, books, size = default_sizes(options.items)
    sizes = [*sizes, *[size] * books]
    codes = torch.from_numpy(np.stack([rng.integers(0, one, options.items) for one in sizes], 1))
    text = torch.from_numpy(rng.standard_normal((options.items, 256), dtype=np.float32))
    features = QueryFeatures(np.zeros((0, 256), np.float32), np.zeros(0, np.int64), np.zeros(1, np.int64))
    return data, Catalogue(text, codes, build_trie(codes, sizes)), features


def recorded(folder: Path):
    """A prepared dataset with the semantic IDs beside it."""
    data, ids = Dataset(folder), SemanticIds.load(folder.parent / "semantic_ids")
    data.lengths = data.known_lengths(TRAIN)
    return data, ids.catalogue, QueryFeatures.build(data.query_texts, ids.encoder)


REPEATS = 3


class Step:
    """A network, its optimiser and a loss: ``run(place)`` is one whole training step; returns its real events."""

    def __init__(self, config: Config, data, catalogue: Catalogue, features: QueryFeatures, device: str, bf16: bool):
        self.config, self.data, self.device, self.bf16 = config, data, device, bf16
        torch.manual_seed(0)
        generate = bool(config.training.generate_weight)
        self.network = (
            GenerativeRecommender(config.model, catalogue, len(data.actions_chain), 10_000.0, generate)
            .to(device)
            .train()
        )
        self.collator = Collator(config.model, features)
        windows = make_windows(data.offsets, data.lengths, config.model.max_length, config.model.max_length // 2)
        counts = request_counts(data, windows, True, False)  # recommendations alone, as the padded one has
        self.loader = WindowBatches(data, windows, counts, self.collator, config.training, 1, 0, False)
        parts = replace(
            config.training, accumulate=1 if isinstance(self, Padded) or device != "cpu" else CPU_PARTS
        )  # as a run has it
        self.in_parts = WindowBatches(data, windows, counts, self.collator, parts, 1, 0, False)
        config.training.epochs = config.training.epochs or 1  # of the learning rate's schedule
        self.module = TrainingModule(self.network, config, len(self.loader))
        self.module.log = lambda *_, **__: None
        self.optimizer = self.module.configure_optimizers()["optimizer"]

    def batch(self, place: int) -> Batch:
        return self.loader[place].batch.to(self.device)

    def context(self, place: int) -> int:
        """Real context events of a batch."""
        rows, windows = self.loader.batches[place], self.loader.windows
        return int((windows.stop[rows] - windows.start[rows] - 1).sum())

    def loss(self, batch: Batch, place: int) -> torch.Tensor:
        return self.module.training_step(batch, place)

    def run(self, place: int) -> int:
        rows = self.loader.batches[place]
        parts = self.in_parts.parts
        self.optimizer.zero_grad()
        for index in range(place * parts, (place + 1) * parts):
            part = self.in_parts[index]
            batch = self.batch(place) if parts == 1 else part.batch.to(self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(batch, index)
            (loss * part.weight / parts).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        windows = self.loader.windows
        return int((windows.stop[rows] - windows.start[rows]).sum())


class DecoderStep(Step):
    """The code decoder learns alone, on a network that stays as it is."""

    def __init__(self, *args):
        super().__init__(*args)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith("decoder."))
        self.module.decoder_only = True
        self.optimizer = self.module.configure_optimizers()["optimizer"]


class Padded(Step):
    """Everything to the maximum length: a request at every position, and the whole vocabulary at each of them."""

    def batch(self, place: int) -> Batch:
        batch = super().batch(place)
        length = self.config.model.max_length
        pad = length - batch.items.shape[1]
        context = {name: F.pad(getattr(batch, name), (0, pad)) for name in ("items", "actions", "queries", "times")}
        requests = max(length - batch.positions.shape[1], 0)
        own = {
            name: F.pad(getattr(batch, name), (0, requests))
            for name in ("positions", "request_times", "request_queries")
        }
        return replace(batch, **context, **own, targets=F.pad(batch.targets, (0, requests), value=-1))

    def loss(self, batch: Batch, place: int) -> torch.Tensor:
        encoded = self.network.encode(batch)
        settings = self.config.training
        logits = self.network.retrieval_vectors(encoded.requests) @ self.network.item_index(encoded.items).T
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1)
        if settings.generate_weight:
            loss = loss + settings.generate_weight * self.module.generation_loss(
                batch, encoded, batch.where(lambda host: host.targets >= 0)
            )
        return loss


def products(step: Step, place: int) -> list[tuple[int, int, int, int]]:
    """The matrix products (m, k, n, times: 3 forward and backward, 2 without a gradient of the input, 1 forward alone)
    that a batch's real tokens need.

    No token, item or candidate counts that the step could do without: context states behind the last layer's keys and
    values only where a
    code decoder reads them, and the vectors of those items alone that the batch names or the softmax runs over.
    """
    network, batch = step.network, step.batch(place)
    if isinstance(step, DecoderStep):  # the trunk runs forward only
        return [(*shape[:3], 1) for shape in trunk_products(step, batch, place)[:-2]] + decoder_products(step, place)
    found = trunk_products(step, batch, place)
    return found + (decoder_products(step, place) if network.decoder is not None else [])


def trunk_products(step: Step, batch: Batch, place: int) -> list[tuple[int, int, int, int]]:
    """Those of the backbone and, last, of the item vectors and of the softmax over items."""
    config, network = step.config, step.network
    with torch.no_grad():
        candidates = step.module.candidates(batch, place)
        made = len(step.module.item_vectors(batch, candidates)[2])
    context, requests = step.context(place), int(step.loader.counts[step.loader.batches[place]].sum())
    dim, items = config.model.dim, network.catalogue.n_items
    tokens = context + requests
    found = [(tokens, dim, 3 * dim, 3), (tokens, dim, dim, 3), (tokens, dim, 4 * dim, 3), (tokens, 4 * dim, dim, 3)] * (
        config.model.layers - 1
    )
    read = requests if network.decoder is None else tokens
    found += [(tokens, dim, 2 * dim, 3), *[(read, dim, dim, 3)] * 2, (read, dim, 4 * dim, 3), (read, 4 * dim, dim, 3)]
    found += [(requests, dim, dim, 3)] * (1 + (network.last_event is not None)) + [
        (made, network.catalogue.text.shape[1], dim, 2)
    ]
    return [*found, (requests, dim, items if candidates is None else len(candidates.ids), 3)]


def decoder_products(step: Step, place: int) -> list[tuple[int, int, int, int]]:
    """Those of the code decoder and of the vectors of the nodes it walks past."""
    config, trie, dim, batch = step.config, step.network.catalogue.trie, step.config.model.dim, step.batch(place)
    targets = batch.targets[batch.targets >= 0]
    drawn = int(len(targets) * config.training.generate_share)
    context = int(step.context(place))
    walked = drawn * trie.depth
    layer = [
        (context, dim, 2 * dim, 3),
        *[(walked, dim, width, 3) for width in (3 * dim, dim, dim, dim, 2 * dim)],
        (walked, 2 * dim, dim, 3),
    ]
    found = (
        layer * config.model.decoder_layers
        + [(drawn, dim, dim, 3)] * trie.depth
        + [(drawn, dim, int(trie.child_count[0]), 3)]
    )
    found.append(
        (
            len(walked_nodes(trie, trie.item_path[targets[:drawn]])[0]),
            dim,
            dim,
            2 if isinstance(step, DecoderStep) else 3,
        )
    )
    return found


def time_products(
    shapes: list[tuple[int, int, int, int]], device: str, dtype: torch.dtype, clock
) -> tuple[float, float]:
    """Seconds that the products take alone, and their floating-point operations."""
    seconds = operations = 0.0
    cache: dict[tuple, float] = {}
    for m, k, n, times in shapes:
        if (m, k, n, times) not in cache:
            a, b, g = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
            best = float("inf")
            for _ in range(REPEATS):
                begin = clock()
                _ = a @ b
                if times > 1:
                    _ = a.T @ g
                if times > 2:
                    _ = g @ b.T
                best = min(best, clock() - begin)
            cache[m, k, n, times] = best
        seconds += cache[m, k, n, times]
        operations += 2.0 * m * k * n * times
    return seconds, operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=None, help="a prepared dataset, with semantic_ids/ beside it")
    parser.add_argument("--users", type=int, default=22_363)
    parser.add_argument("--items", type=int, default=12_101)
    for name, default in (
        ("length", 50),
        ("dim", 128),
        ("layers", 1),
        ("heads", 2),
        ("batch", 128),
        ("rounds", 6),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument(
        "--padded-batch", type=int, default=64, help="sequences per padded step; its logits must fit into memory"
    )
    parser.add_argument("--negatives", type=int, default=1024, help="of the sampled row")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    gpu = options.device != "cpu"

    def clock() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.process_time() if options.threads == 1 and not gpu else time.perf_counter()

    data, catalogue, features = recorded(options.dataset) if options.dataset else simulated(options)
    config = Config()
    config.model = replace(
        config.model, dim=options.dim, layers=options.layers, heads=options.heads, max_length=options.length, anchors=0,
        dropout=options.dropout,
    )  # fmt: skip
    print(f"{len(data.offsets) - 1} users, {data.lengths.mean():.1f} training events each, {catalogue.n_items} items, dim {options.dim}, "
          f"{options.layers} layers, {options.device}, {options.threads} thread(s)", flush=True)  # fmt: skip
    kinds = {
        "ours, retrieval": (Step, {"generate_weight": 0.0}, options.batch),
        "padded, retrieval": (Padded, {"generate_weight": 0.0}, options.padded_batch),
        "ours, codes": (DecoderStep, {}, options.batch),
        "ours, retrieval + codes in one": (Step, {}, options.batch),
        "padded, retrieval + codes in one": (Padded, {}, options.padded_batch),
        f"ours, retrieval, {options.negatives} negatives": (Step, {"generate_weight": 0.0, "negatives": options.negatives}, options.batch),
    }  # fmt: skip
    steps = {}
    for name, (kind, changes, batch_size) in kinds.items():
        own = replace(config, training=replace(config.training, batch_size=batch_size, distill_weight=0.0, **changes))
        steps[name] = kind(own, data, catalogue, features, options.device, gpu)
    events, seconds, alone, operations = ({name: 0.0 for name in steps} for _ in range(4))
    for turn in range(options.rounds + 1):
        for name, step in steps.items():
            # Batches hold sequences of one length: those at even distances in the order of size stand for the epoch.
            sizes = np.array([step.loader.counts[rows].sum() for rows in step.loader.batches])
            place = int(np.argsort(sizes, kind="stable")[int((max(turn, 1) - 0.5) / options.rounds * len(sizes))])
            took = float("inf")
            for _ in range(REPEATS if turn else 1):
                begin = clock()
                done = step.run(place)
                took = min(took, clock() - begin)
            if turn == 0:  # warm
                continue
            events[name], seconds[name] = events[name] + done, seconds[name] + took
            if not isinstance(step, Padded):
                least, count = time_products(
                    products(step, place), options.device, torch.bfloat16 if gpu else torch.float32, clock
                )
                alone[name], operations[name] = alone[name] + least, operations[name] + count
    show({name: events[name] / seconds[name] for name in steps}, {name: alone[name] / seconds[name] for name in steps},
         {name: operations[name] / seconds[name] / 1e9 for name in steps})  # fmt: skip
    print(f"matrix products alone: {sum(operations.values()) / sum(alone.values()) / 1e9:,.0f} GFLOP/s")


def show(rates: dict[str, float], shares: dict[str, float], speeds: dict[str, float]) -> None:
    """The table; ``rates`` in events a second, ``shares`` of the products in the step (0: not known), ``speeds`` in
    GFLOP/s."""
    rates["ours, retrieval, then codes"] = 1 / (1 / rates["ours, retrieval"] + 1 / rates["ours, codes"])
    print(f"\n{'step':<36}{'real events/s':>14}{'x padded':>10}{'products':>10}{'GFLOP/s':>10}")
    for name, rate in rates.items():
        padded = rates["padded, retrieval + codes in one" if "codes" in name else "padded, retrieval"]
        share = f"{shares[name]:>10.0%}{speeds[name]:>10.1f}" if shares.get(name) else ""
        print(f"{name:<36}{rate:>14,.0f}{rate / padded:>10.1f}{share}")


if __name__ == "__main__":
    main()
