"""What a lexical look-up costs in a large catalogue of made-up titles: CPU time of one thread.

    python scripts/bench/lexical.py [--items 1000000] [--queries 300]

Titles are eight words drawn by Zipf's law from a vocabulary that grows with the catalogue (Heaps), with brand and
category. Queries are two or three words of titles drawn by popularity; "typo" has one wrong letter and "prefix" a
half-typed last word. A look-up reads the query (corrections included) and scores its items; nothing is remembered.
Beside it: what titles and facets (levels of the category, brand) say of a query, for the best ``CANDIDATES`` items.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import polars as pl

from genrec.data.everyday_queries import half_typed, misspelt
from genrec.retrieval.lexical import LexicalIndex

CANDIDATES = 150
SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]


def catalogue(n_items: int, rng: np.random.Generator) -> pl.DataFrame:
    n_words = int(20 * n_items**0.7)
    parts = rng.integers(len(SYLLABLES), size=(n_words, 4))
    lengths = rng.integers(1, 5, n_words)
    words = np.array(["".join(SYLLABLES[p] for p in row[:n]) for row, n in zip(parts, lengths, strict=True)])
    weight = 1 / (np.arange(n_words) + 2.7)
    chosen = rng.choice(n_words, size=(n_items, 8), p=weight / weight.sum())
    return pl.DataFrame(
        {
            "item_id": [str(n) for n in range(n_items)],
            "title": [" ".join(row) for row in words[chosen]],
            "text": pl.Series([None] * n_items, dtype=pl.String),
            "brand": words[rng.integers(min(n_words, 5000), size=n_items)],
            "category": words[rng.integers(min(n_words, 500), size=(n_items, 2))].tolist(),
            "price": pl.Series([None] * n_items, dtype=pl.Float64),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    items = catalogue(options.items, rng)
    popularity = np.floor(1000 / (1 + rng.permutation(options.items)))
    start = time.process_time()
    index = LexicalIndex.fit(items, popularity)
    print(f"{options.items:,} items, {len(index.vocabularies[0]):,} words; fit {time.process_time() - start:.1f} CPU s")
    start = time.process_time()
    index.read("zzzzqqqq")
    print(f"first misspelt word (makes the index of shortenings): {time.process_time() - start:.2f} CPU s")
    drawn = rng.choice(options.items, options.queries, p=popularity / popularity.sum() if popularity.sum() else None)
    titles = [items["title"][int(row)].split() for row in drawn]
    draws = rng.integers(1 << 30, size=options.queries).tolist()
    kinds = {
        "one word": [words[:1] for words in titles],
        "two words": [words[:2] for words in titles],
        "three words": [words[:3] for words in titles],
        "typo": [misspelt(words[:2], draw) for words, draw in zip(titles, draws, strict=True)],
        "prefix": [half_typed(words[:2], draw) for words, draw in zip(titles, draws, strict=True)],
        "nonsense": [["xq" + "".join(rng.permutation(list(words[0] + "jw")))] for words in titles],
    }
    for kind, queries in kinds.items():
        texts = [" ".join(words) for words in queries if words]
        times, lengths, features = [], [], []
        for text in texts:
            start = time.process_time()
            ids, scores = index.index.match(index.reader.read(text).groups)
            if len(ids) > 50:
                np.argpartition(-scores, 50)
            times.append(time.process_time() - start)
            lengths.append(len(ids))
            best = ids[np.argsort(-scores)[:CANDIDATES]][None]
            start = time.process_time()
            index.title_match([text], best)
            index.facet_match([text], best)
            features.append(time.process_time() - start)
        ms = np.array(times) * 1000
        print(
            f"{kind:12s} mean {ms.mean():.2f} median {np.median(ms):.2f} p95 {np.quantile(ms, 0.95):.2f} ms; "
            f"{np.mean(lengths):.0f} items scored; "
            f"titles and facets {np.median(features) * 1000:.2f} ms"
        )


if __name__ == "__main__":
    main()
