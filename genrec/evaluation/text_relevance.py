"""Text relevance without people: the judged items of each query ranked by text alone (ESCI's first task)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from genrec.errors import UserError
from genrec.evaluation.baselines import DenseText
from genrec.evaluation.metrics import top_k
from genrec.evaluation.qrels import Qrels, qrels_metrics
from genrec.retrieval.lexical import LexicalIndex
from genrec.text.encoder import TextEncoder

TextScorer = Callable[[Sequence[str]], np.ndarray]
"""query texts -> scores (Q, n_items)."""


def text_relevance(
    items: pl.DataFrame, judgments: pl.DataFrame, scorers: dict[str, TextScorer]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Rank every query's judged items by each scorer: ``ndcg`` over all of them and ``ndcg@10``, each (Q,); and notes.

    ``items`` in the order of the scores' columns; ``judgments`` as in the data contract (gains E 1, S 0.1, C 0.01, I
    0). Judgments of items without a row are left out and counted, as are queries with no item of any gain. Equal
    scores: the lower item first, whatever its gain.
    """
    positions = items.select("item_id", pl.int_range(pl.len()).alias("item"))
    judged = judgments.join(positions, on="item_id", how="inner", maintain_order="left")
    useful = pl.col("gain").max().over("query_id") > 0
    kept = judged.filter(useful)
    if kept.is_empty():
        raise UserError(
            "text relevance: no judged item is in the item table; check that judgments and items belong together"
        )
    queries = kept.select("query_id", "query").unique("query_id", keep="first", maintain_order=True)
    topics = kept.join(
        queries.select("query_id", pl.int_range(pl.len()).alias("topic")), on="query_id", maintain_order="left"
    )
    topic, item = topics["topic"].to_numpy(), topics["item"].to_numpy()
    qrels = Qrels.build(topic, item, topics["gain"].to_numpy(), len(queries))
    width = int(np.bincount(topic).max())
    allowed = np.zeros((len(queries), len(items)), bool)
    allowed[topic, item] = True
    results = {}
    for name, scorer in scorers.items():
        ranked = top_k(np.where(allowed, scorer(queries["query"].to_list()), -np.inf), max(width, 10))[0]
        measured = qrels_metrics(ranked, qrels, (10,))
        results[name] = {key: measured[key] for key in ("ndcg", "ndcg@10")}
    notes = [
        (
            f"{len(queries)} queries, {len(kept)} judgments; left out: {len(judgments) - len(judged)} of items "
            "without a row, "
            f"{judged.filter(~useful)['query_id'].n_unique()} queries without a relevant item"
        ),
    ]
    return results, notes


def text_scorers(lexical: LexicalIndex, vectors: np.ndarray, encoder: TextEncoder) -> dict[str, TextScorer]:
    """BM25, the text encoder's cosine, and their sum with BM25 divided by the query's best; no training on queries.

    ``vectors`` (n_items, text_dim): the items' text vectors.
    """
    dense = DenseText().fit(vectors)

    def cosine(texts: Sequence[str]) -> np.ndarray:
        return dense.score(encoder.encode(texts, "query"))

    def both(texts: Sequence[str]) -> np.ndarray:
        words = lexical.score(texts)
        return words / np.maximum(words.max(1, keepdims=True), 1e-9) + cosine(texts)

    return {"BM25": lexical.score, "dense text": cosine, "dense text + BM25": both}
