"""Measure decoding: our engine, Hugging Face ``generate``, other tries, the dense indexes, and the floor, all in one
run.

    python scripts/bench/decode.py                              # small sizes, minutes
    python scripts/bench/decode.py --items 100000 --dim 256 --layers 6 --histories 27 60 150 600 --beams 50 256

Every table is printed and, with --output, written as JSON. Times are milliseconds on the threads that torch was given:
wall time, or with
--clock cpu the processor time of this process, which a busy machine disturbs less (meant for one thread).
"""

from __future__ import annotations

import argparse
import bisect
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from decode_llama import LlamaScorer, PackedLlama, dict_trie, hugging_face, make_llama, node_tokens
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie, build_trie
from genrec.catalogue.trie_growth import extend_trie
from genrec.config.schema import DecodingConfig
from genrec.generation.beam import beam_search, ragged_children, select
from genrec.generation.engine import Searcher
from genrec.generation.exact import full_search
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder
from genrec.retrieval.dense import KINDS, dense_index

PYTHON_LIMIT = 2_000_000  # items above which tries of Python objects no longer fit
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """P50 and P99 of a call in milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append((clock() - start) * 1e3)
    return {"p50": round(float(np.percentile(times, 50)), 3), "p99": round(float(np.percentile(times, 99)), 3)}


def table(title: str, rows: list[dict]) -> dict:
    """Print rows as a Markdown table."""
    print(f"\n### {title}\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |", flush=True)
    return {title: rows}


def catalogue(items: int, levels: int, seed: int = 0) -> torch.Tensor:
    """Codes (items, levels) as skewed as quantizers make them: the codes of each level follow a power law."""
    generator = np.random.default_rng(seed)
    sizes = vocabulary(levels)
    return torch.from_numpy(
        np.stack([(generator.random(items) ** 1.5 * size).astype(np.int64) for size in sizes], axis=1)
    )


def vocabulary(levels: int) -> tuple[int, ...]:
    return {3: (4096, 1024, 512), 4: (1024, 512, 256, 256), 5: (256, 128, 64, 64, 64)}[levels]


def bench_trie(sizes: list[int]) -> dict:
    """Building, extending and memory of the trie."""
    rows = []
    for items in sizes:
        codes = catalogue(items, 3)
        built, grown = [], []
        for _ in range(2):  # the better of two
            start = clock()
            trie = build_trie(codes, vocabulary(3))
            built.append(clock() - start)
        for _ in range(2):
            start = clock()
            extend_trie(trie, codes[: max(items // 1000, 1)])
            grown.append(clock() - start)
        held = sum(tensor.numel() * tensor.element_size() for tensor in trie.saved_tensors().values())
        rows.append({
            "items": items, "nodes": trie.n_nodes, "build s": round(min(built), 2), "extend by 0.1 % s": round(min(grown), 2),
            "MB": round(held / 1e6, 1),
            "peak process MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        })  # fmt: skip
    return table("Trie", rows)


def bench_mask(sizes: list[int], width: int, repeats: int) -> dict:
    """One step's mask and state, no network: legal children of ``width`` random prefixes of two codes, then the top
    ``width``."""
    return table(f"Legal children of {width} prefixes", [mask_row(items, width, repeats) for items in sizes])


def mask_row(items: int, width: int, repeats: int) -> dict:
    trie = build_trie(catalogue(items, 3), vocabulary(3))
    nodes = torch.randint(trie.level_bounds[2], trie.level_bounds[3], (1, width)).unique()[None]
    live = torch.ones_like(nodes, dtype=torch.bool)

    def gather() -> torch.Tensor:
        return ragged_children(trie, nodes, live, None)[0]

    children = gather()
    scores = torch.randn(children.shape)
    row = {
        "items": items,
        "beams": nodes.shape[1],
        "children": children.shape[1],
        "gather ms": timed(gather, repeats)["p50"],
    }
    row["top-k ms"] = timed(lambda: select(scores, children, width), repeats)["p50"]
    if items > PYTHON_LIMIT:
        return row
    paths = trie.node_code[trie.item_path]
    first = trie.leaf_items[trie.node_item_start[nodes[0]]]  # an item below each prefix
    return row | other_tries(paths, [tuple(prefix) for prefix in paths[first, :2].tolist()], repeats)


def other_tries(paths: torch.Tensor, prefixes: list[tuple[int, ...]], repeats: int) -> dict[str, float]:
    """The same children from a Python dict, from marisa-trie where it is installed, and by binary search over sorted
    codes."""
    listed = paths.tolist()
    nested, ordered = dict_trie(listed), sorted(map(tuple, listed))

    def from_dict() -> list:
        return [list(nested[first][second]) for first, second in prefixes]

    def by_search() -> list:
        return [
            sorted(
                {
                    code[2]
                    for code in ordered[
                        bisect.bisect_left(ordered, prefix) : bisect.bisect_left(ordered, (prefix[0], prefix[1] + 1))
                    ]
                }
            )
            for prefix in prefixes
        ]

    result = {"dict ms": timed(from_dict, repeats)["p50"], "binary search ms": timed(by_search, repeats)["p50"]}
    try:
        import marisa_trie
    except ImportError:
        return result | {"marisa ms": "not installed"}
    packed = marisa_trie.Trie("".join(map(chr, (code + 0x10000 for code in path))) for path in listed)

    def from_marisa() -> list:
        return [{key[2] for key in packed.keys("".join(chr(code + 0x10000) for code in prefix))} for prefix in prefixes]

    return result | {"marisa ms": timed(from_marisa, repeats)["p50"]}


def bench_llama(args: argparse.Namespace) -> dict:
    """The engine and Hugging Face's constrained beam search on one Llama-shaped network, in turn."""
    trie = build_trie(catalogue(args.items, 3), vocabulary(3))
    tokens, rows = node_tokens(trie), []
    model = make_llama(trie, args.dim, args.layers, max(args.histories) + 8)
    table_of_tokens = dict_trie(tokens[trie.item_path].tolist())
    network = PackedLlama(model, tokens, trie)
    for history in args.histories:
        prompt = torch.randint(
            2, model.config.vocab_size, (1, history), generator=torch.Generator().manual_seed(history)
        )
        for beams in args.beams:
            rows.append(llama_row(args, trie, model, network, prompt, table_of_tokens, beams))
            print(rows[-1], flush=True)
    return table(f"Llama-shaped network {args.layers} x {args.dim}, {args.items} items, batch 1", rows)


def llama_operations(dim: int, layers: int, history: int, steps: list[int], children: int) -> int:
    """Multiplications and additions that nobody can leave out: weights, attention, and the products of ``children`` and
    the root's codes.

    Of the last layer the prompt needs keys and values, and all of it for one position only.
    """
    layer, rows = 16 * dim**2, sum(steps)
    weights = layer * layers * (rows + 1) + (layer * (layers - 1) + 2 * dim**2) * (history - 1)
    seen = (
        (layers - 1) * history * (history + 1) // 2 + history + layers * sum(count * (history + 1) for count in steps)
    )
    return 2 * (weights + 2 * dim * seen + dim * children)


def llama_row(
    args: argparse.Namespace,
    trie: CatalogueTrie,
    model,
    network: PackedLlama,
    prompt,
    table_of_tokens: dict,
    beams: int,
) -> dict:
    """One row of the table. In every round theirs runs once, then ours, the rate of a square product and our products
    alone five times."""
    tokens, rows, history = network.tokens, beams * (trie.depth - 1), prompt.shape[1]
    counted = CountedLlama(network, prompt, rows)
    found = beam_search(trie, counted, 1, beams)
    square = torch.randn(1024, 1024)
    calls = {
        "ours": lambda: beam_search(trie, LlamaScorer(network, prompt, rows), 1, beams), "prompt": lambda: LlamaScorer(network, prompt, rows),
        "products": lambda: network.products(history, counted.steps), "square": lambda: square @ square,
    }  # fmt: skip
    if beams <= args.hf_beams:
        calls["HF"] = lambda: hugging_face(model, prompt, table_of_tokens, trie.depth, beams)
    times = in_turn(calls, args.repeats, {"HF": 1}, 5)
    middle = {name: float(np.percentile(values, 50)) for name, values in times.items()}
    rate = 2 * 1024**3 / middle["square"]  # per ms
    floor = llama_operations(network.dim, len(network.layers), history, counted.steps, counted.children) / rate
    row = {
        "history": history,
        "beams": beams,
        "ours p50": round(middle["ours"], 2),
        "p99": round(float(np.percentile(times["ours"], 99)), 2),
    }
    row |= {"prompt": round(middle["prompt"], 2), "rows": found.rows}
    if "HF" in middle:
        lists, scores = hugging_face(model, prompt, table_of_tokens, trie.depth, beams)
        members = trie.leaf_items[trie.leaf_item_offsets[found.leaves[0] - trie.level_bounds[trie.depth]]]
        walks = tokens[trie.item_path[members]].tolist()
        row |= {"HF p50": round(middle["HF"], 1), "times faster": round(middle["HF"] / middle["ours"], 1)}
        row |= {"same leaves": round(len({*map(tuple, walks)} & {*map(tuple, lists)}) / len(walks), 3)}
        row |= {"largest score gap": f"{float((scores - found.scores[0]).abs().max()):.0e}"}
    row |= {
        "GFLOP/s of a square product": round(rate / 1e6),
        "floor ms": round(floor, 2),
        "share of floor": round(floor / middle["ours"], 2),
    }
    return row | {"our products alone": round(middle["products"], 2), "proven": int(found.proven)}


class CountedLlama(LlamaScorer):
    """Counts the rows of every step and the children that are scored."""

    def __init__(self, network: PackedLlama, prompt: torch.Tensor, rows: int):
        self.steps: list[int] = []
        self.children = len(network.root)
        super().__init__(network, prompt, rows)

    def expand(self, depth, nodes, parents):
        if depth:
            self.steps.append(nodes.shape[1])
        return super().expand(depth, nodes, parents)

    def child_logits(self, children, slots):
        self.children += children.numel()
        return super().child_logits(children, slots)


def in_turn(
    calls: dict[str, Callable[[], object]], rounds: int, often: dict[str, int], usual: int
) -> dict[str, list[float]]:
    """Milliseconds of each call, made in turn so that all see the same machine: ``often`` (else ``usual``) times in
    every round."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(often.get(name, usual)):
                start = clock()
                call()
                times[name].append((clock() - start) * 1e3)
    return times


def make_decoder(items: int, levels: int, dim: int, history: int, batch: int):
    """A random code decoder over a random catalogue, with the projected context of a batch."""
    trie = build_trie(catalogue(items, levels), vocabulary(levels))
    decoder = CodeDecoder(trie, dim, 2, max(dim // 64, 1), 0.0, 0.1).eval()
    vectors = decoder.node_vectors(trie, torch.zeros(items, dim))
    state, context = torch.randn(batch, 1, dim), torch.randn(batch, history, dim)
    return (
        trie,
        decoder,
        vectors,
        lambda: decoder.memory(state, context, torch.ones(batch, 1, history, dtype=torch.bool)),
    )


def bench_decoder(args: argparse.Namespace) -> dict:
    """Our code decoder over batch, beam, catalogue and levels: whole search and its parts."""
    rows = []
    for levels in args.levels:
        for items in args.catalogues:
            for batch in args.batches:
                trie, decoder, vectors, project = make_decoder(items, levels, args.dim, 60, batch)
                for beams in args.beams:
                    rows.append(decoder_row(args, trie, decoder, vectors, project, batch, beams))
    return table(f"Code decoder, width {args.dim}, context 60, {args.threads} threads", rows)


def decoder_row(
    args: argparse.Namespace, trie: CatalogueTrie, decoder: CodeDecoder, vectors, project, batch: int, beams: int
) -> dict:
    memory = project()
    scorer = _Timed(decoder, memory, vectors)
    searcher = Searcher(decoder, vectors, trie, DecodingConfig(beam=beams))
    whole = timed(lambda: searcher.search(project()), args.repeats)
    found = searcher.search(memory)
    beam_search(trie, scorer, batch, beams)
    row = {"levels": trie.depth, "items": trie.n_items, "batch": batch, "beam": beams, **whole}
    row |= {"requests/s": round(batch / whole["p50"] * 1e3, 1), "rows": found.rows}
    row |= {"proven top 10": round(float(found.exact(10).float().mean()), 2)}
    row |= {
        "memory ms": timed(project, args.repeats)["p50"],
        "network ms": round(scorer.network * 1e3, 2),
        "children ms": round(scorer.children * 1e3, 2),
    }
    if beams >= 10:
        best = Searcher(decoder, vectors, trie, DecodingConfig(beam=beams, search="exact"))
        exact = best.search(memory)
        row |= {"exact p50": timed(lambda: best.search(project()), args.repeats)["p50"], "exact rows": exact.rows}
        row |= {
            "certified": round(float(exact.exact(10).float().mean()), 2),
            "beam has of exact 10": overlap(found.leaves, exact.leaves),
        }
    if sum(trie.open_nodes) * batch <= args.full_rows:
        every = full_search(trie, CachedScorer(decoder, memory, vectors, max(sum(trie.open_nodes), 1)), batch, beams)
        row |= {"beam has of full 10": overlap(found.leaves, every.leaves)}
    return row


class _Timed(CachedScorer):
    """Counts the seconds spent in the network and in the dot products of children."""

    network = children = 0.0

    def expand(self, depth, nodes, parents):
        start = clock()
        slot = super().expand(depth, nodes, parents)
        self.network += clock() - start
        return slot

    def child_logits(self, children, slots):
        start = clock()
        logits = super().child_logits(children, slots)
        self.children += clock() - start
        return logits


def overlap(one: torch.Tensor, other: torch.Tensor, k: int = 10) -> float:
    """The mean share of the other's first k that are among one's."""
    return round(float((other[:, :k, None] == one[:, None]).any(-1).float().mean()), 3)


def bench_dense(items: int, dim: int, repeats: int, threads: int) -> dict:
    """Dense indexes on clustered unit vectors, in turn."""
    faiss.omp_set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(items // 200, 1), dim, generator=generator)
    pick = torch.randint(len(centres), (items,), generator=generator)
    vectors = F.normalize(centres[pick] + 0.7 * torch.randn(items, dim, generator=generator), dim=-1)
    queries = F.normalize(vectors[:256] + 0.05 * torch.randn(min(256, items), dim, generator=generator), dim=-1)
    truth = (queries @ vectors.T).topk(min(100, items)).indices
    built, rows = {}, {}
    for kind in KINDS[1:]:
        start = clock()
        built[kind] = dense_index(kind, vectors)
        rows[kind] = {"index": kind, "build s": round(clock() - start, 2)}
    whole = in_turn({kind: partial(index.nearest, queries, 100) for kind, index in built.items()}, repeats, {}, 1)
    one = {kind: partial(index.nearest, queries[:1], 100) for kind, index in built.items()}
    bare = {
        f"bare {kind}": partial(index.index.search, queries[:1].numpy(), 100)
        for kind, index in built.items()
        if kind != "exact"
    }
    single = in_turn(one | bare, repeats, {}, 5)  # bare: FAISS itself, without our checks and the order of ties
    for kind, row in rows.items():
        row |= {"one query ms": middle_of(single[kind]), "FAISS itself ms": middle_of(single.get(f"bare {kind}", []))}
        row |= {
            f"{len(queries)} queries ms": middle_of(whole[kind]),
            "recall@100": overlap(built[kind].nearest(queries, 100), truth, 100),
        }
        row |= {"x exact": round(float(np.median(whole["exact"]) / np.median(whole[kind])), 2)}
    return table(f"Dense retrieval, {items} x {dim}, top 100", list(rows.values()))


def middle_of(values: list[float]) -> float | str:
    return round(float(np.median(values)), 3) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["trie", "mask", "llama", "decoder", "dense"],
        choices=["trie", "mask", "llama", "decoder", "dense"],
    )
    parser.add_argument("--items", type=int, default=5000, help="catalogue of the Llama table and of the dense table")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--histories", type=int, nargs="+", default=[27])
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--hf-beams", type=int, default=256, help="largest beam that Hugging Face is asked for")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--catalogues", type=int, nargs="+", default=[10_000])
    parser.add_argument("--levels", type=int, nargs="+", default=[3])
    parser.add_argument("--trie-sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--full-rows", type=int, default=200_000, help="most rows spent to score a whole catalogue for comparison"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    parts = {
        "trie": lambda: bench_trie(args.trie_sizes),
        "mask": lambda: bench_mask(args.trie_sizes, 512, args.repeats),
        "llama": lambda: bench_llama(args),
        "decoder": lambda: bench_decoder(args),
        "dense": lambda: bench_dense(args.items, 128, args.repeats, args.threads),
    }
    with torch.no_grad():
        results = [parts[part]() for part in args.parts]
    if args.output:
        args.output.write_text(
            json.dumps({name: rows for result in results for name, rows in result.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
