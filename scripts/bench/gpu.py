"""Proves and measures genrec on a GPU: correctness, decoding, training, dense retrieval. At most eight minutes on one H100-class card.

    python scripts/bench/gpu.py --output gpu.json          # on a GPU
    python scripts/bench/gpu.py --tiny                     # tiny shapes; automatic without a GPU

Everything is simulated: nothing is read or fetched. Each part runs in a process of its own with its own time limit, so that a failure, or a
CUDA error, stops none of the others. The exit code is 0 if every part ran to its end.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.trie import build_trie
from genrec.config.schema import Config
from genrec.data.sequences import make_windows
from genrec.generation.beam import beam_search, leaf_items, ragged_children, select
from genrec.generation.graphs import cuda_capture
from genrec.generation.scorers import CachedScorer
from genrec.model.batch import Batch
from genrec.model.collate import Collator
from genrec.model.network import GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.model.size import step_flops
from genrec.retrieval.dense import ExactIndex
from genrec.training.module import TrainingModule

LIMITS = {"correctness": 90, "decoding": 180, "training": 150, "retrieval": 60}  # seconds
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12}  # bf16 operations a second, dense, by name
TEXT_DIM, ACTIONS, TIME_BASE = 64, 2, 10_000.0
NEAR_TIE = 1e-3  # two scores so close may change places between devices
Row = dict[str, object]


def shop(items: int, levels: tuple[int, ...], seed: int = 0) -> Catalogue:
    """A random catalogue with codes of the given vocabularies."""
    made = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (items,), generator=made) for size in levels], dim=1)
    text = torch.nn.functional.normalize(torch.randn(items, TEXT_DIM, generator=made), dim=-1)
    return Catalogue(text, codes, build_trie(codes, levels))


def configured(dim: int, layers: int, length: int, decoder_layers: int = 1, **training) -> Config:
    """A config whose network draws nothing at random, so that two devices can be compared."""
    config = Config()
    model = replace(
        config.model, dim=dim, layers=layers, heads=max(dim // 64, 2), decoder_layers=decoder_layers, max_length=length,
        dropout=0.0, item_dropout=0.0, query_anchors=False, anchors=4,
    )  # fmt: skip
    settings = replace(config.training, epochs=1, generate_share=1.0, distill_weight=0.0, **training)
    return replace(config, model=model, training=settings)


def network_of(config: Config, catalogue: Catalogue, generate: bool = True) -> GenerativeRecommender:
    """A network with random weights, large enough to matter."""
    torch.manual_seed(1)
    return GenerativeRecommender(config.model, catalogue, ACTIONS, TIME_BASE, generate)


def windows_batch(config: Config, items: int, sequences: int, length: int, stride: int) -> Batch:
    """A training batch of full windows."""
    rng, total = np.random.default_rng(2), sequences * (length + 1)
    data = SimpleNamespace(
        offsets=np.arange(sequences + 1) * (length + 1), items=rng.integers(0, items, total).astype(np.int32),
        actions=np.zeros(total, np.int16), queries=np.full(total, -1, np.int32), timestamps=np.arange(total) * 3600,
    )  # fmt: skip
    windows = make_windows(data.offsets, np.diff(data.offsets), length, stride)
    no_queries = QueryFeatures(np.zeros((0, TEXT_DIM), np.float32), np.zeros(0, np.int64), np.zeros(1, np.int64))
    rows = np.flatnonzero(windows.stop - windows.start == length + 1)[:sequences]
    return Collator(config.model, no_queries).windows(data, windows, rows, True, False)


def requests_batch(config: Config, items: int, requests: int, history: int) -> Batch:
    """One request behind each full history: the last one of each window."""
    batch = windows_batch(config, items, requests, history, 1)
    last = batch.positions.argmax(1, keepdim=True)
    names = ("positions", "request_times", "request_queries", "targets")
    return replace(batch, **{name: getattr(batch, name).gather(1, last) for name in names})


def training_module(config: Config, network: GenerativeRecommender, device: str) -> tuple[TrainingModule, object]:
    """A training module on its device, moved as Lightning moves it, and its optimiser."""
    module = TrainingModule(network, config, 100)
    module.log = lambda *_, **__: None
    module._trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
    torch.nn.ModuleList([module]).to(device)
    return module.train(), module.configure_optimizers()["optimizer"]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median of single calls, each waited for."""
    call()
    times = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        call()
        synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times))


def captured(run: Callable[[], object], device: str) -> Callable[[], object]:
    """``run`` as one CUDA graph; unchanged on a CPU. Results stay in the same tensors."""
    return run if device == "cpu" else cuda_capture(run)


class Answerer:
    """A whole request: backbone, memory of the decoder, beam search, items."""

    def __init__(self, network: GenerativeRecommender, batch: Batch, beam: int, bf16: bool = False):
        self.network, self.batch, self.beam, self.bf16 = network.eval(), batch, beam, bf16
        with torch.inference_mode():
            self.items = network.item_encoder()
            self.vectors = network.decoder.node_vectors(network.catalogue.trie, self.items)

    @torch.inference_mode()
    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        network, trie, count = self.network, self.network.catalogue.trie, len(self.batch.items)
        with torch.autocast(self.items.device.type, torch.bfloat16, enabled=self.bf16):
            memory = network.decoder_memory(network.encode(self.batch, self.items))
            scorer = CachedScorer(network.decoder, memory, self.vectors, 1 + self.beam * (trie.depth - 1))
            found = beam_search(trie, scorer, count, self.beam, static=True)
        return leaf_items(trie, found.leaves, found.scores)


def correctness(device: str, tiny: bool) -> Iterator[Row]:
    """CPU and device give the same lists, losses and gradients; resuming changes nothing; graph and eager agree."""
    items, dim, length, beam = (300, 16, 8, 8) if tiny else (50_000, 128, 50, 50)
    config, catalogue = configured(dim, 2, length), shop(items, (32, 16, 16) if tiny else (256, 128, 64))
    network, batch = network_of(config, catalogue), requests_batch(config, items, 4 if tiny else 64, length)
    here, scores = Answerer(network, batch, beam)()
    moved = torch.nn.ModuleList([network_of(config, catalogue)]).to(device)[0]
    there = Answerer(moved, batch.to(device), beam)
    eager, eager_scores = (part.cpu() for part in there())
    live = scores.isfinite() & (here >= 0)
    gap = (scores - eager_scores).abs()[live].max()
    ties = (scores.diff(dim=1).abs() < NEAR_TIE).float().mean()
    yield {"check": "lists CPU = device", "equal": float((here == eager)[live].float().mean()), "largest gap": float(gap),
           "near ties": float(ties)}  # fmt: skip
    graph, graph_scores = (part.cpu() for part in captured(there, device)())
    yield {"check": "graph = eager", "equal": float((graph == eager).float().mean()),
           "largest gap": float((graph_scores - eager_scores).abs()[live].max())}  # fmt: skip
    half, _ = Answerer(moved, batch.to(device), beam, bf16=True)()
    overlap = [len(set(a) & set(b)) / len(a) for a, b in zip(half.cpu().tolist(), here.tolist(), strict=True)]
    yield {"check": "bf16 lists", "overlap": float(np.mean(overlap))}
    training = windows_batch(config, items, 8, length, length)
    found = []
    for where in ("cpu", device):
        module, _ = training_module(config, network_of(config, catalogue), where)
        module.step_loss(training.to(where), 0).backward()
        gradients = {name: p.grad.cpu() for name, p in module.network.named_parameters() if p.grad is not None}
        found.append((gradients, float(module.step_loss(training.to(where), 0).detach())))
    (ours, our_loss), (theirs, their_loss) = found
    worst = max(float((ours[name] - theirs[name]).norm() / ours[name].norm().clamp(min=1e-6)) for name in ours)
    yield {"check": "training step", "loss CPU": our_loss, "loss device": their_loss, "largest gradient error": worst}
    yield resumed(config, catalogue, training, device)


def resumed(config: Config, catalogue: Catalogue, batch: Batch, device: str) -> Row:
    """Four steps equal two steps, a state in memory, and two more."""
    module, optimizer = training_module(config, network_of(config, catalogue), device)
    losses = []
    for place in range(4):
        if place == 2:
            states = copy.deepcopy((module.network.state_dict(), optimizer.state_dict()))
        losses.append(train_step(module, optimizer, batch.to(device), place, bf16=False))
    module, optimizer = training_module(config, network_of(config, catalogue), device)
    module.network.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    again = [train_step(module, optimizer, batch.to(device), place, bf16=False) for place in (2, 3)]
    return {"check": "resume", "largest gap": max(abs(float(a - b)) for a, b in zip(losses[2:], again, strict=True))}


def train_step(module: TrainingModule, optimizer, batch: Batch, place: int, bf16: bool) -> torch.Tensor:
    """One whole step; its loss stays on the device."""
    optimizer.zero_grad()
    torch.manual_seed(place)
    with torch.autocast(batch.items.device.type, torch.bfloat16, enabled=bf16):
        loss = module.step_loss(batch, place)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def decoding(device: str, tiny: bool) -> Iterator[Row]:
    """Whole requests in one graph, for the shapes of the goals; then one step's mask and state for large catalogues."""
    small = {"dim": 16, "layers": 2, "levels": (16, 16, 8), "items": 300}
    goal = {"dim": 256, "layers": 6, "levels": (1024, 512, 256), "items": 100_000}
    large = {"dim": 1024, "layers": 8, "levels": (256,) * 4, "items": 1_000_000}
    shapes = [(small, 6, 8, batch) for batch in (1, 4)]
    if not tiny:
        shapes = [(goal, 150, 50, batch) for batch in (1, 16, 256)] + [(large, 256, 200, 1), (large, 2048, 200, 16)]
    bandwidth = measured_bandwidth(device, 1 << (20 if tiny else 30))
    for shape, history, beam, count in shapes:
        config = configured(shape["dim"], shape["layers"], history, decoder_layers=2)
        network = network_of(config, shop(shape["items"], shape["levels"]))
        answer = Answerer(network.to(device), requests_batch(config, shape["items"], count, history).to(device), beam,
                          bf16=device != "cpu")  # fmt: skip
        took = milliseconds(captured(answer, device), 3 if tiny else 20)
        layers = [network.backbone, network.decoder.layers, network.decoder.heads]
        weights = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
        yield {"dim": shape["dim"], "layers": shape["layers"], "items": shape["items"], "history": history, "beam": beam,
               "batch": count, "ms": took, "requests/s": count / took * 1e3,
               "share of bandwidth, weights": weights / (took / 1e3) / bandwidth}  # fmt: skip
        del network, answer
    for items in (1000,) if tiny else (10**4, 10**5, 10**6, 10**7):
        trie = shop(items, (16, 8, 8) if tiny else (4096, 1024, 512)).trie.to(device)
        width = min(512, trie.level_bounds[3] - trie.level_bounds[2])
        nodes = torch.arange(trie.level_bounds[2], trie.level_bounds[2] + width, device=device)[None]
        lanes = trie.most_children(2, width)
        noise = torch.randn(1, lanes, device=device)

        def step(trie=trie, nodes=nodes, lanes=lanes, noise=noise, width=width) -> object:
            children, _, valid = ragged_children(trie, nodes, None, lanes)
            return select(noise.masked_fill(~valid, -torch.inf), children, width)

        yield {"mask and state of beams": width, "items": items, "ms": milliseconds(captured(step, device), 20)}


def measured_bandwidth(device: str, size: int) -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (milliseconds(lambda: target.copy_(source), 5) / 1e3)


def training(device: str, tiny: bool) -> Iterator[Row]:
    """Real tokens a second, and the share of the device's bf16 peak that the formula's operations are."""
    shapes = {"base": (128, 2, 50, 256), "large": (256, 4, 50, 256), "1024 x 12": (1024, 12, 200, 64)}
    if tiny:
        shapes = {"tiny": (16, 1, 8, 4)}
    items = 300 if tiny else 20_000
    catalogue = shop(items, (32, 16, 16) if tiny else (256, 128, 64))
    peak = bf16_peak(device, 256 if tiny else 8192)
    for name, (dim, layers, length, sequences) in shapes.items():
        for compiled in (False,) if tiny or device == "cpu" else (False, True):
            config = configured(dim, layers, length, negatives=64 if tiny else 2048, generate_weight=0.0)
            module, optimizer = training_module(config, network_of(config, catalogue, generate=False), device)
            if compiled:
                for block in module.network.backbone.blocks:
                    block.compile(dynamic=True)
            batch = windows_batch(config, items, sequences, length, length)
            moved = batch.to(device)
            took = milliseconds(partial(train_step, module, optimizer, moved, 0, device != "cpu"), 2 if tiny else 10)
            tokens = int(batch.positions.amax(1).sum() + (batch.targets >= 0).sum())
            negatives = config.training.negatives
            work = step_flops(config.model, sequences, length, batch.targets.shape[1], negatives, items, TEXT_DIM)
            yield {"network": name, "compiled": compiled, "ms": took, "real tokens/s": tokens / took * 1e3,
                   "share of bf16 peak": work / (took / 1e3) / peak}  # fmt: skip


def bf16_peak(device: str, size: int) -> float:
    """Operations a second: the vendor's number where the card is known, else those of a large product."""
    if device != "cpu":
        name = torch.cuda.get_device_name()
        for known, value in PEAK.items():
            if known in name:
                return value
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device != "cpu" else torch.float32)
    return 2 * size**3 / (milliseconds(lambda: matrix @ matrix, 5) / 1e3)


def retrieval(device: str, tiny: bool) -> Iterator[Row]:
    """Exact dense retrieval of the best 100."""
    for items in (2000,) if tiny else (10**6, 10**7):
        vectors = torch.nn.functional.normalize(torch.randn(items, 16 if tiny else 128, device=device), dim=-1)
        index = ExactIndex(vectors)
        for count in (1, 256):
            queries = torch.randn(count, vectors.shape[1], device=device)
            took = milliseconds(partial(index.nearest, queries, 100), 3 if tiny else 10)
            yield {"items": items, "batch": count, "ms": took, "requests/s": count / took * 1e3}


PARTS = {"correctness": correctness, "decoding": decoding, "training": training, "retrieval": retrieval}


def run_part(name: str, tiny: bool, scale: float) -> dict:
    """One part in its own process: its rows, and what went wrong, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        command = [sys.executable, __file__, "--only", name, "--rows", str(file), *(["--tiny"] if tiny else [])]
        begin, problem = time.perf_counter(), None
        try:
            done = subprocess.run(command, timeout=LIMITS[name] * scale, capture_output=True, text=True, check=False)
            if done.returncode:
                problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            problem = f"stopped after {LIMITS[name] * scale:.0f} s"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {"part": name, "seconds": time.perf_counter() - begin, "problem": problem, "rows": rows}


def show(found: dict) -> None:
    """Print a part's rows, one a line."""
    print(f"\n{found['part']}: {found['seconds']:.0f} s{', FAILED: ' + found['problem'] if found['problem'] else ''}")
    for row in found["rows"]:
        print("  " + "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                               for key, value in row.items()), flush=True)  # fmt: skip


def main() -> int:
    """Run all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; always on without a GPU")
    parser.add_argument("--output", type=Path, help="JSON file for all rows")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the time limits")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    if options.only:
        with options.rows.open("w") as file:
            for row in PARTS[options.only](device, tiny):
                file.write(json.dumps(row) + "\n")
                file.flush()
        return 0
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}{', tiny shapes' if tiny else ''}")
    found = []
    for part in options.parts:
        found.append(run_part(part, tiny, options.scale))
        show(found[-1])
    if options.output:
        machine = {"device": name, "torch": torch.__version__, "python": sys.version.split()[0], "tiny": tiny}
        options.output.write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n")
    return int(any(part["problem"] for part in found))


if __name__ == "__main__":
    sys.exit(main())
