"""Queries as bags of hashed words and hashed character n-grams.

Words match exactly, also model numbers; n-grams match in spite of a typo.

Words are hashed whole. Of each word, its 3 to 5 letters in a row are hashed too, with marks at its ends ("<led>" gives
"<le", "led", "ed>" ...). Scripts without spaces are read character by character, and there two characters in a row
stand for a word. Everything is done on the columns of all queries at once; the only loop is over distinct words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from genrec.data.queries import mix, string_hash
from genrec.text.encoder import SPACELESS, TOKEN_PATTERN

WORD_BUCKETS = 1 << 14
NGRAM_BUCKETS = 1 << 14
HASHED = WORD_BUCKETS + NGRAM_BUCKETS  # words, then n-grams
MAX_CHARACTERS = 256  # of a query that are read; no person types more
NGRAMS = (3, 4, 5)
SPACELESS_NGRAMS = (2,)
_RUNS = rf"[{SPACELESS}]+|" + TOKEN_PATTERN.split("|", 1)[1]


def readable(texts: Sequence[str]) -> list[str]:
    """The part of each query that is read: its first ``MAX_CHARACTERS`` characters.

    Lone surrogates become "?".
    """
    return [text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8") for text in texts]


def hashed_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ragged tokens of Q queries as ``readable`` gives them: rows (n,) and tokens (n,) int64.

    Words have tokens below ``WORD_BUCKETS``, n-grams have higher ones.

    Letter case and width (full-width forms) do not matter. A query without letters and digits has no token.
    """
    if not len(texts):  # most requests have no query, and a table engine takes a millisecond to find nothing
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    table = pl.DataFrame(
        {"row": np.arange(len(texts), dtype=np.int64), "text": pl.Series(list(texts), dtype=pl.String)}
    )
    table = table.with_columns(pl.col("text").str.normalize("NFKC").str.to_lowercase())
    words = _found(table, TOKEN_PATTERN)
    distinct, position = _distinct(words["word"])
    ngram_rows, ngrams = _ngrams(_found(table, _RUNS))
    tokens = (string_hash(distinct) % np.uint64(WORD_BUCKETS)).astype(np.int64)[position]
    return np.concatenate([words["row"].to_numpy(), ngram_rows]), np.concatenate([tokens, WORD_BUCKETS + ngrams])


def _found(table: pl.DataFrame, pattern: str) -> pl.DataFrame:
    """``row`` and ``word``: every match of a pattern, in order."""
    return table.select("row", pl.col("text").str.extract_all(pattern).alias("word")).explode("word").drop_nulls("word")


def _distinct(words: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Distinct words, and each word's position among them."""
    distinct = words.unique(maintain_order=True)
    position = (
        words.replace_strict(distinct, np.arange(len(distinct)), return_dtype=pl.Int64)
        if len(words)
        else pl.Series([], dtype=pl.Int64)
    )
    return distinct, position.to_numpy()


def _ngrams(words: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows and hashed n-grams of runs of letters."""
    rows, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    spaceless = pl.col("word").str.contains(rf"^[{SPACELESS}]")
    marked = pl.concat_str(pl.lit("<"), "word", pl.lit(">")).alias("word")
    for part, lengths in (
        (words.filter(~spaceless).with_columns(marked), NGRAMS),
        (words.filter(spaceless), SPACELESS_NGRAMS),
    ):
        letters = np.frombuffer("".join(part["word"]).encode("utf-32-le"), np.uint32).astype(np.uint64)
        count = part["word"].str.len_chars().to_numpy().astype(np.int64)
        left = np.repeat(np.cumsum(count), count) - np.arange(len(letters))  # letters from here to the word's end
        owner = np.repeat(part["row"].to_numpy(), count)
        state = np.zeros(len(letters), np.uint64)
        for n in range(1, max(lengths) + 1):
            with np.errstate(over="ignore"):
                state = mix(state + np.concatenate([letters[n - 1 :], np.zeros(min(n - 1, len(letters)), np.uint64)]))
            if n in lengths:
                rows.append(owner[left >= n])
                hashes.append((state[left >= n] % np.uint64(NGRAM_BUCKETS)).astype(np.int64))
    return np.concatenate(rows), np.concatenate(hashes)
