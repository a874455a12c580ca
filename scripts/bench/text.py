"""Text encoders compared: relevance of real queries, agreement of first codes, transitions and searches of a dataset,
speed, memory.

    python scripts/bench/text.py --esci FOLDER                  # products.ndjson.gz and judgments.tsv.gz of the ESCI
    sample
    python scripts/bench/text.py --dataset RUN/dataset          # transitions and searches of a prepared log
    python scripts/bench/text.py --esci FOLDER --encoders tfidf minilm --cache FOLDER --output FOLDER

Every row runs in a process of its own, so that its memory is its own, and is written to ``--output`` as it comes.
Nothing is trained on
judged queries.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from genrec.artifacts.folders import fingerprint, write_json
from genrec.config.load import load_config
from genrec.config.schema import Config
from genrec.data.dataset import Dataset
from genrec.data.schema import ITEM_SCHEMA, conform
from genrec.retrieval.bm25 import BM25
from genrec.semantic_ids.keywords import KeywordDictionary, fuse
from genrec.semantic_ids.quantizers import default_sizes, fit_codebooks
from genrec.semantic_ids.text_space import clicked_pairs
from genrec.text.encoder import TextEncoder, item_texts
from genrec.text.factory import fit_encoder

SPEED_SAMPLE = 512  # texts timed without a cache
MAX_SEARCHES = 4000
NEIGHBOURS = 50


def read_esci(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items in the data contract (with a colour column), and judgments: ``query``, ``item`` (row), ``gain``."""
    with gzip.open(folder / "products.ndjson.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    items = pl.DataFrame({
        "item_id": [row["asin"] for row in rows], "title": [row["title"] for row in rows], "brand": [row["brand"] for row in rows],
        "text": [" ".join(filter(None, (row["bullet_points"], row["description"]))) for row in rows],
        "category": pl.Series([row["category"] or [] for row in rows], dtype=pl.List(pl.String)),
        "price": pl.Series([row["price"] for row in rows], dtype=pl.Float64),
        "color": pl.Series([row["color"] for row in rows], dtype=pl.String),
    })  # fmt: skip
    judged = pl.read_csv(folder / "judgments.tsv.gz", separator="\t")
    row = judged["asin"].replace_strict(items["item_id"], np.arange(len(items)), return_dtype=pl.Int64)
    return conform(items, ITEM_SCHEMA, str(folder)), judged.select("query", row.alias("item"), "gain")


def ndcg(scores: np.ndarray, query: np.ndarray, gain: np.ndarray, k: int = 10) -> np.ndarray:
    """nDCG@k of each query that has any gain, over its judged items: ``scores``, ``query``, ``gain`` (judgments,)."""
    discount = 1 / np.log2(np.arange(2, k + 2))

    def dcg(by: np.ndarray) -> np.ndarray:
        order = np.lexsort((-by, query))
        rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
        seen = rank < k
        return np.bincount(
            query[order][seen], weights=gain[order][seen] * discount[rank[seen]], minlength=query.max() + 1
        )

    best = dcg(gain)
    return dcg(scores)[best > 0] / best[best > 0]


def first_code_agreement(
    items: np.ndarray, queries: np.ndarray, judged_item: np.ndarray, judged_query: np.ndarray, seed: int
) -> dict[str, float]:
    """Share of the given pairs with one first code, against all query-item pairs; the default quantizer fitted on items
    and queries."""
    both = np.concatenate([items, queries])
    sizes, sub_codebooks, sub_size = default_sizes(len(both))
    first = fit_codebooks(both, sizes, sub_codebooks, sub_size, seed)[1][:, 0]
    of_item, of_query = first[: len(items)], first[len(items) :]
    share = [np.bincount(codes, minlength=sizes[0]) / len(codes) for codes in (of_item, of_query)]
    pairs, random = float((of_item[judged_item] == of_query[judged_query]).mean()), float((share[0] * share[1]).sum())
    return {
        "exact_pairs_share_first_code": pairs,
        "random_pairs_share_first_code": random,
        "times_random": pairs / random,
    }


def open_encoder(name: str, items: pl.DataFrame, args: argparse.Namespace) -> tuple[TextEncoder, dict[str, float]]:
    """The encoder, and its speed on a sample of the texts without a cache."""
    overrides = (
        [f"text.encoder={name}", f"text.dim={args.dim}"]
        if name in ("tfidf", "minilm")
        else ["text.encoder=hf", f"text.model={name}"]
    )
    config = load_config(None, overrides).text
    texts = item_texts(items)
    start = time.perf_counter()
    encoder = fit_encoder(config, items, args.seed)
    opened = time.perf_counter() - start
    sample = texts[:: max(1, len(texts) // SPEED_SAMPLE)][:SPEED_SAMPLE]
    start = time.perf_counter()
    encoder.encode(sample, "item")
    speed = {"fit_seconds": opened, "texts_per_second": len(sample) / (time.perf_counter() - start)}
    return (fit_encoder(config, items, args.seed, args.cache) if name != "tfidf" else encoder), speed


def keyword_vectors(encoder: TextEncoder, keywords: KeywordDictionary) -> np.ndarray:
    return np.where(keywords.has_words[:, None], encoder.encode(keywords.display_forms, "item"), 0).astype(np.float32)


def esci_rows(name: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one encoder, keywords off and on; or of BM25."""
    items, judged = read_esci(args.esci)
    queries = judged["query"].unique(maintain_order=True)
    query = judged["query"].replace_strict(queries, np.arange(len(queries)), return_dtype=pl.Int64).to_numpy()
    item, gain = judged["item"].to_numpy(), judged["gain"].to_numpy()
    exact = gain == gain.max()
    bm25 = ndcg(BM25().fit(items).score(queries.to_list())[query, item], query, gain)
    if name == "bm25":
        return [{"encoder": name, "ndcg@10": bm25.mean()}]
    encoder, speed = open_encoder(name, items, args)
    plain = encoder.encode_items(items), encoder.encode(queries.to_list(), "query")
    keywords = KeywordDictionary.build(items, seed=args.seed)
    words = keyword_vectors(encoder, keywords)
    fused = tuple(
        fuse(part, found, words)
        for part, found in zip(plain, (keywords.of_items(items), keywords.of_texts(queries.to_list())), strict=True)
    )
    rows = []
    for label, (items_, queries_) in (("off", plain), ("on", fused)):
        values = ndcg((items_[item] * queries_[query]).sum(1), query, gain)
        above = values - bm25
        rows.append({"encoder": name, "keywords": label, "dim": encoder.dim, "ndcg@10": values.mean(), "minus_bm25": above.mean(),
                     "standard_error": above.std() / len(above) ** 0.5,
                     **first_code_agreement(items_, queries_, item[exact], query[exact], args.seed), **speed})  # fmt: skip
    return rows


def dataset_rows(name: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one encoder, keywords off and on. Queries of a log without searches are synthetic."""
    dataset = Dataset(args.dataset)
    items = dataset.item_table
    requests = dataset.requests(args.split)
    requests = requests.take(np.flatnonzero(np.diff(requests.offsets) > 0))
    last, target = requests.items[requests.offsets[1:] - 1], requests.targets
    keywords = KeywordDictionary.build(items, clicked_pairs(dataset), args.seed)
    found = keywords.of_items(items)
    encoder, speed = open_encoder(name, items, args)
    plain, words = encoder.encode_items(items), keyword_vectors(encoder, keywords)
    rows = []
    for label, vectors in (("off", plain), ("on", fuse(plain, found, words))):
        near = faiss.knn(vectors, vectors, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
        row = {"encoder": name, "keywords": label,
               f"transitions_in_{NEIGHBOURS}_nearest": ((near[last] == target[:, None]).any(1) & (last != target)).mean(),
               **speed}  # fmt: skip
        for kind in dataset.query_kinds:
            requests = dataset.requests(args.split, kind)
            requests = requests.take(np.random.default_rng(args.seed).permutation(len(requests))[:MAX_SEARCHES])
            texts_of = [requests.query_texts[query] for query in requests.request_queries]
            vector = encoder.encode(texts_of, "query")
            vector = vector if label == "off" else fuse(vector, keywords.of_texts(texts_of), words)
            top = faiss.knn(vector, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
            mark = " (synthetic)" if dataset.info["synthetic_queries"] else ""
            row[f"search recall@10, {kind}{mark}"] = (top == requests.targets[:, None]).any(1).mean()
        rows.append(row)
    return rows


def one(task: str, name: str, args: argparse.Namespace) -> list[dict]:
    rows = (esci_rows if task == "esci" else dataset_rows)(name, args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        {
            **{key: value if isinstance(value, str) else round(float(value), 5) for key, value in row.items()},
            "peak_mb": round(peak),
        }
        for row in rows
    ]


def show(task: str, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=task)
    for row in rows:
        table.add_row(
            *(
                "" if key not in row else str(row[key]) if isinstance(row[key], str) else f"{row[key]:.4g}"
                for key in columns
            )
        )
    Console(width=240).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esci", type=Path, help="folder of the ESCI sample")
    parser.add_argument("--dataset", type=Path, help="a prepared dataset folder, RUN/dataset")
    parser.add_argument(
        "--encoders", nargs="+", default=["tfidf", "minilm"], help="tfidf, minilm, a Hugging Face name or a folder"
    )
    parser.add_argument("--split", default="valid", choices=["valid", "test"], help="of the dataset")
    parser.add_argument("--dim", type=int, default=Config().text.dim, help="of tfidf")
    parser.add_argument("--cache", type=Path, help="vectors by content, kept between runs")
    parser.add_argument(
        "--output", type=Path, help="folder for a JSON file per encoder; rows found there are not made again"
    )
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if not args.esci and not args.dataset:
        parser.error("give --esci FOLDER or --dataset RUN/dataset")
    for task in ("esci", "dataset"):
        rows: list[dict] = []
        for name in [*(["bm25"] if task == "esci" else []), *args.encoders] if getattr(args, task) else []:
            key = fingerprint(task, name, str(getattr(args, task)), args.split, args.dim, args.seed)
            kept = args.output / f"text-{task}-{key}.json" if args.output else None
            if kept and kept.is_file():
                rows += json.loads(kept.read_text())
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(one, task, name, args).result()
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(kept, found)
            rows += found
        if rows:
            show(task, rows)


if __name__ == "__main__":
    main()
