"""The certificate on a trained run: beam and exact search over every test request, against scoring every leaf.

    python scripts/bench/certificate.py runs/amazon-beauty --output results

For each batch the prompt runs once; then come the beam, the exact search and, for ``--full`` requests over all, the
score of every leaf.
What a person already had is left out, as a server does. Agreement: the same first ten leaves in the same order as full
scoring.
Times are processor seconds of this process, beam and exact in turn on the same batch. Beside it the same one request at
a time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from genrec.config.schema import DecodingConfig
from genrec.generation.constraints import AllowedNodes
from genrec.generation.engine import Searcher
from genrec.generation.exact import full_search
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import Memory
from genrec.model.collate import request_batches
from genrec.ranking.ranker import Ranker
from genrec.retrieval.allowed import AllowedItems, id_rows
from genrec.runs.run import Run

TOP = 10


class Bench:
    """One fitted run and the two searches that are compared."""

    def __init__(self, ranker: Ranker, beam: int, kinds: list[str]):
        generator = ranker.generator
        self.network, self.nodes, self.items = generator.network, generator.nodes, generator.items
        self.trie = self.network.catalogue.trie
        self.searchers = {
            kind: Searcher(self.network.decoder, self.nodes, self.trie, DecodingConfig(beam=beam, search=kind))
            for kind in kinds
        }

    def search(self, kind: str, memory: Memory, allowed: AllowedItems):
        """What a search found, and its seconds."""
        started = time.process_time()
        found = self.searchers[kind].search(memory, allowed)
        return found, time.process_time() - started

    def everything(self, memory: Memory, allowed: AllowedItems) -> torch.Tensor:
        """The first ten leaves by scoring all: (B, 10)."""
        rows = sum(self.trie.open_nodes)
        return full_search(
            self.trie,
            CachedScorer(self.network.decoder, memory, self.nodes, rows),
            len(memory.state),
            TOP,
            AllowedNodes.of(self.trie, allowed, len(memory.state)),
        ).leaves

    def compare(self, ranker: Ranker, requests, size: int, full: int) -> dict:
        """Search all requests in batches of ``size``; ``full`` of them are also scored in full."""
        sums: dict[str, float] = defaultdict(float)
        done = 0
        for turn, (_, chunk, batch) in enumerate(
            request_batches(requests, ranker.collator(requests.query_texts), size)
        ):
            memory = self.network.decoder_memory(self.network.encode(batch, self.items))
            allowed = AllowedItems(excluded=id_rows(chunk.offsets, chunk.items))
            found = {}
            for kind in sorted(self.searchers, reverse=bool(turn % 2)):
                found[kind], seconds = self.search(kind, memory, allowed)
                if turn > 1:  # the first ones warm up
                    sums[f"{kind} s"] += seconds
                sums[f"{kind} rows"] += found[kind].rows * len(chunk)
                sums[f"{kind} certified"] += int(found[kind].exact(TOP).sum())
            sums["timed"] += len(chunk) * (turn > 1)
            wanted = full * (done + len(chunk)) // len(requests) - full * done // len(
                requests
            )  # batches go by length: a share of each
            for some in torch.arange(wanted).split(4):  # every leaf of a few requests at a time
                if not len(some):
                    break
                truth = self.everything(_take(memory, some), allowed.take(some))
                sums["scored in full"] += len(some)
                for kind in found:
                    same = (found[kind].leaves[some, :TOP] == truth).all(1)
                    sums[f"{kind} agrees"] += int(same.sum())
                    sums[f"{kind} certified and different"] += int((found[kind].exact(TOP)[some] & ~same).sum())
                    sums[f"{kind} leaves"] += float(
                        (found[kind].leaves[some, :TOP, None] == truth[:, None]).any(-1).float().mean(1).sum()
                    )
            done += len(chunk)
            if turn % 50 == 0:
                print(done, dict(sums), flush=True)
        return _table(sums, done, size)


def _take(memory: Memory, rows: torch.Tensor) -> Memory:
    copy_bias = None if memory.copy_bias is None else memory.copy_bias.take(rows)
    return Memory(
        memory.state[rows],
        [k[rows] for k in memory.keys],
        [v[rows] for v in memory.values],
        memory.mask[rows],
        copy_bias,
    )


def _table(sums: dict[str, float], requests: int, size: int) -> dict:
    result = {"requests": requests, "batch": size, "scored in full": int(sums["scored in full"])}
    for kind in ("beam", "exact"):
        if f"{kind} rows" not in sums:
            continue
        result[kind] = {
            "certified": round(sums[f"{kind} certified"] / requests, 5), "rows per request": round(sums[f"{kind} rows"] / requests, 1),
            "ms per request": round(sums[f"{kind} s"] / max(sums["timed"], 1) * 1e3, 3),
        }  # fmt: skip
        if scored := sums["scored in full"]:
            result[kind] |= {
                "first ten in order": round(sums[f"{kind} agrees"] / scored, 5), "share of the exact ten": round(sums[f"{kind} leaves"] / scored, 5),
                "certified and different": int(sums[f"{kind} certified and different"]),
            }  # fmt: skip
    return result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--output", type=Path, help="folder for certificate.json; without it the result is printed alone"
    )
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--singles", type=int, default=500, help="requests that are also searched one at a time")
    parser.add_argument("--requests", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--full", type=int, default=2000, help="requests whose every leaf is scored")
    parser.add_argument("--kinds", nargs="+", choices=["beam", "exact"], default=["beam", "exact"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run.open(options.run)
    ranker = run.ranker("train", fused=False)
    bench = Bench(ranker, options.beam, options.kinds)
    requests = run.dataset.requests("test")
    drawn = np.random.default_rng(0).permutation(len(requests))
    requests = requests.take(drawn[: options.requests or len(drawn)])
    result = {"open nodes": list(bench.trie.open_nodes)}
    result["one at a time"] = bench.compare(ranker, requests.take(np.arange(min(options.singles, len(requests)))), 1, 0)
    result["batches"] = bench.compare(ranker, requests, options.batch, options.full)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "certificate.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
