"""Which semantic IDs does generation learn best? Every quantizer, and KHQE with each part on and off, on one trunk and
one budget.

    python scripts/bench/semantic_ids.py configs/amazon-beauty.yaml --output runs/semantic-ids
    data.path=/path/to/amazon-beauty

The trunk (item, query and context encoder with the retrieval head) is fitted once, without codes in its item vectors,
so that it knows
nothing of any row. Each row then tokenizes with its own settings and fits only a code decoder on that fixed trunk, for
exactly
--epochs epochs of the training split (no choice on validation), and ranks by generation alone over the split's
requests. Texts that the
trunk reads are those of the config in every row; what it makes of a batch is kept in memory for the rows that follow (1
to 2 GB). With --epochs 0 nothing is fitted: the walk takes each node's exact share of the trunk's
dense distribution, as a decoder would that had learnt it perfectly, and only the tree and the beam decide what is lost.
All rows share seed, batches and requests, so Recall@10 is compared in pairs over users.
A row is written to OUTPUT/rows/NAME.json as soon as it is done; run the same command again and what is done is kept, a
stopped training
resumes. OUTPUT/table.md and table.json hold the table.
"""

from __future__ import annotations

import argparse
import copy
import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genrec.artifacts.folders import fingerprint, open_artifact, read_json, write_json
from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import CatalogueTrie
from genrec.config.load import load_config, to_dict
from genrec.data.dataset import TRAIN, Requests
from genrec.errors import UserError
from genrec.evaluation.metrics import paired_test, per_request_metrics
from genrec.generation.beam import leaf_items
from genrec.generation.scorers import generate
from genrec.model.anchors import Anchors
from genrec.model.batch import Batch
from genrec.model.collate import Collator, request_batches
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import load_network
from genrec.pipeline.stages import stage_prepare
from genrec.ranking.ranker import seen_mask
from genrec.runs.run import Run
from genrec.semantic_ids.tokenize import tokenize
from genrec.training.fit import FitPlan, fit

REFERENCE = "rq-opq"
ROWS = {  # the quantizers, then one part of KHQE changed at a time; what matters most first
    REFERENCE: [f"semantic_ids.quantizer={REFERENCE}"],
    **{name: [f"semantic_ids.quantizer={name}"] for name in ("rq-kmeans", "rq-vae", "opq", "random")},
    "keywords off": ["semantic_ids.keywords=false"],
    "no OPQ": ["semantic_ids.opq_subcodebooks=0"],
    "text alone": ["semantic_ids.behaviour_share=0"],
    "another seed": ["seed=7"],  # how much of a difference is chance
}
COLUMNS = {
    "ICR before": "icr_before", "ICR": "icr", "used L1..2": "used_two", "Gini, worst": "gini", "error": "error", "same L1": "neighbours_one",
    "same L1..2": "neighbours_two", "query L1": "queries_one", "Recall@10": "recall@10", "nDCG@10": "ndcg@10",
}  # fmt: skip
log = logging.getLogger("semantic_ids")


def shared_trunk(base: Run, job: argparse.Namespace) -> Path:
    """The network without decoder and without codes that all rows stand on."""
    config = copy.deepcopy(base.config)
    config.model.item_inputs = ["ids", "text"]
    tokenize(config, base.dataset, base.folder / "semantic_ids")
    return fit(config, base.dataset, base.ids, base.folder / "trunk", FitPlan(TRAIN, job.trunk_epochs, generate=False))


def remember_trunk() -> None:
    """From here on the network's ``encode`` gives equal batches what it gave the first; right while all networks have
    the same trunk."""
    made: dict[str, Encoded] = {}
    encode = GenerativeRecommender.encode

    def remembered(
        network: GenerativeRecommender, batch: Batch, items: Tensor | None = None, anchors: Anchors | None = None
    ) -> Encoded:
        read = (
            batch.items,
            batch.positions,
            batch.request_queries,
            batch.query_text,
            batch.targets,
        )  # same targets, same anchors
        key = fingerprint(
            anchors is None, *(part.shape for part in read), *(hash(part.numpy().tobytes()) for part in read)
        )
        if key not in made:
            once = encode(network, batch, items, anchors)
            made[key] = replace(
                once, blocks=[once.requests[:, :, None]], cache=[]
            )  # a trunk without reasoning steps has no other block
        return made[key]

    GenerativeRecommender.encode = remembered


def measure(base: Run, backbone_folder: Path, name: str, overrides: list[str], job: argparse.Namespace) -> dict:
    """Fit and score one row; kept in OUTPUT/rows. Raises ``UserError`` where this version does not know one of the
    row's keys."""
    config = load_config(job.config, [*job.overrides, *overrides])
    config.data, config.model.item_inputs, config.training.decoder_epochs = (
        copy.deepcopy(base.config.data),
        ["ids", "text"],
        job.epochs,
    )
    config.training.generate_share = job.generate_share
    slug = name.replace(" ", "-")
    folder, done = job.output / "work" / slug, job.output / "rows" / f"{slug}.json"
    key = fingerprint(
        4, open_artifact(backbone_folder, "model")["key"], to_dict(config), job.split, job.users, job.searches, job.beam
    )
    if done.is_file() and read_json(done)["key"] == key:
        log.info("%s: kept", name)
        return read_json(done)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    same_words = [
        to_dict(one.text) | {"keywords": one.semantic_ids.keywords, "seed": one.seed} for one in (config, base.config)
    ]
    words = base.ids.words if same_words[0] == same_words[1] else None
    own = SemanticIds.load(tokenize(config, base.dataset, folder / "semantic_ids", words))
    tokenized = time.process_time() - begun
    # the row's codes and trie over the texts that the trunk was fitted with
    catalogue = Catalogue(base.ids.catalogue.text, own.catalogue.codes, own.catalogue.trie)
    ids = replace(base.ids, codebooks=own.codebooks, catalogue=catalogue, key=fingerprint(own.key, base.ids.key))
    model = (
        fit(config, base.dataset, ids, folder / "model", FitPlan(TRAIN, job.epochs, backbone_folder=backbone_folder))
        if job.epochs
        else backbone_folder
    )
    fitted = time.process_time() - begun - tokenized
    network, _ = load_network(model, len(base.dataset.actions_chain), ids)
    row = {"name": name, "key": key, "overrides": overrides, "tokenize_cpu_s": tokenized, "fit_cpu_s": fitted}
    row |= quality(read_json(folder / "semantic_ids" / "report.json"))
    collator = Collator(config.model, QueryFeatures.build(base.dataset.query_texts, ids.encoder))
    for kind in (None, *(base.dataset.query_kinds if job.searches else ())):
        limit = job.users if kind is None else job.searches
        requests = base.dataset.requests(job.split, kind)
        if limit and len(requests) > limit:
            requests = requests.take(np.sort(np.random.default_rng(0).permutation(len(requests))[:limit]))
        metrics = per_request_metrics(generated(network, collator, requests, job.beam), requests.targets, [10])
        suffix = "" if kind is None else f" search ({kind})"
        row |= {f"{metric}{suffix}": float(metrics[metric].mean()) for metric in ("recall@10", "ndcg@10")}
        row[f"hits{suffix}"] = np.flatnonzero(metrics["recall@10"]).tolist()
        row[f"requests{suffix}"] = len(requests)
    row["score_cpu_s"] = time.process_time() - begun - tokenized - fitted
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json(done, row)
    shutil.rmtree(folder)  # a row is its numbers; what made them can be made again
    return row


@torch.inference_mode()
def generated(network: GenerativeRecommender, collator: Collator, requests: Requests, beam: int) -> np.ndarray:
    """The ten best items (N, 10) of the beam for each request, already-had ones removed; -1 where there are fewer."""
    trie, items = network.catalogue.trie, network.item_encoder()
    index = network.item_index(items)
    nodes = None if network.decoder is None else network.decoder.node_vectors(trie, items)
    result = np.full((len(requests), 10), -1)
    for rows, chunk, batch in request_batches(requests, collator, 256):
        encoded = network.encode(batch, items)
        dense = network.retrieval_vectors(encoded.requests[:, 0]) @ index.T  # orders items that share a code
        if nodes is None:
            leaves, scores = ideal_walk(trie, dense, beam)
        else:
            leaves, scores = generate(network.decoder, network.decoder_memory(encoded), nodes, trie, beam)
        ids, scores = leaf_items(trie, leaves, scores, lambda some, dense=dense: dense.gather(1, some.clamp(min=0)))
        seen = seen_mask(chunk, len(items))
        best = scores.masked_fill((ids < 0) | seen.gather(1, ids.clamp(min=0)), -torch.inf).topk(10, dim=1)
        result[rows] = ids.gather(1, best.indices).masked_fill(best.values.isneginf(), -1).numpy()
    return result


def ideal_walk(trie: CatalogueTrie, dense: Tensor, beam: int) -> tuple[Tensor, Tensor]:
    """Leaves (B, beam) and log-probabilities of a beam search in which a node's probability is that of the items below
    it in ``dense``."""
    share, bounds = dense.softmax(1), trie.level_bounds
    kept = torch.ones(len(dense), 1, dtype=torch.bool)
    for level in range(1, trie.depth + 1):
        first, last = bounds[level], bounds[level + 1]
        mass = share.new_zeros(len(dense), last - first).index_add(1, trie.item_path[:, level - 1] - first, share)
        mass = mass.masked_fill(~kept[:, trie.node_parent[first:last] - bounds[level - 1]], -1)
        best = mass.topk(min(beam, last - first), dim=1)
        kept = torch.zeros_like(mass, dtype=torch.bool).scatter(1, best.indices, best.values >= 0)
    return (best.indices + first).masked_fill(best.values < 0, -1), best.values.log()


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
    header = [
        "row",
        "sizes",
        *COLUMNS,
        f"Recall@10 less {reference['name']}'s",
        *(f"Recall@10, {kind}" for kind in kinds),
    ]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for row in rows:
        cells = [f"{row[key]:.4f}" if "@" in key else f"{row[key]:.3f}" for key in COLUMNS.values()]
        cells += [difference(row, reference), *(f"{row[f'recall@10 {kind}']:.4f}" for kind in kinds)]
        lines.append("| " + " | ".join([row["name"], "-".join(map(str, row["sizes"])), *cells]) + " |")
    budget = (
        f"{job.epochs} epochs of the decoder on one trunk without codes"
        if job.epochs
        else "an ideal decoder of one trunk without codes"
    )
    lines += [
        "",
        f"Generation alone, {budget}, beam {job.beam}, {job.split} split, {reference['requests']} users, already-had items removed.",
    ]
    lines += [f"Not run: {name} ({reason})." for name, reason in skipped.items()]
    (job.output / "table.md").write_text("\n".join(lines) + "\n")
    write_json(
        job.output / "table.json",
        [{key: value for key, value in row.items() if not key.startswith("hits")} for row in rows],
    )
    print("\n".join(lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2, help="training budget of every row's decoder; 0: an ideal one")
    parser.add_argument(
        "--generate-share", type=float, default=0.25, help="share of the requests whose codes a step learns"
    )
    parser.add_argument("--trunk-epochs", type=int, default=4, help="training budget of the trunk they share")
    parser.add_argument("--beam", type=int, default=20)
    parser.add_argument(
        "--split", default="valid", choices=("valid", "test"), help="valid: the table chooses the default"
    )
    parser.add_argument("--users", type=int, default=8000, help="score at most so many recommendations (0: all)")
    parser.add_argument(
        "--searches", type=int, default=1000, help="score at most so many searches of each kind (0: none)"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, as in the table", metavar="NAME[,NAME]")
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME:KEY=VALUE[,KEY=VALUE]", help="a row of your own"
    )
    job, job.overrides = parser.parse_known_args()
    wrong = [value for value in job.overrides if "=" not in value or value.startswith("-")]
    if wrong:
        parser.error(f"unknown argument {wrong[0]}")
    known = dict(ROWS)
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
        backbone_folder = shared_trunk(base, job)
        if not base.config.model.reasoning_steps:
            remember_trunk()
        rows, skipped = [], {}
        for name in job.rows:
            try:
                rows.append(measure(base, backbone_folder, name, known[name], job))
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
