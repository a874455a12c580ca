"""Core keywords: words of 18 attribute types that name an item or a query, and their weight in its vector.

Source: OneSearch (arXiv 2509.03236), KHQE step 2: keywords of items and queries, matched by Aho-Corasick, longest
match, substrings of other keywords dropped; ``e' = norm(1/2 e + 1/2 mean of the keyword vectors)``. The paper
uses a language model where we use structured columns and a dictionary mined from the catalogue's titles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import ahocorasick
import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.queries import STOP_WORDS
from genrec.errors import UserError
from genrec.semantic_ids.keyword_mining import display_form, mine, normal_form
from genrec.semantic_ids.keyword_types import ATTRIBUTES, COLUMN_TYPES, SEEDS
from genrec.text.encoder import unit

FILE = "keyword_dictionary.parquet"
SCHEMA = pl.Schema(
    {"keyword": pl.String, "type": pl.String, "structured": pl.Boolean, "mined": pl.Boolean, "score": pl.Float64}
)
PER_TEXT = 8  # keywords of one item or query (OneSearch-V2 asks for at most 8)
FROM_COLUMNS = (
    6  # of them at most from columns: brand, then categories from specific to general, further columns, price
)
MAX_STRUCTURED_WORDS = 6  # a longer column value is a sentence, not a keyword
MAX_MINED = 50_000
BRAND_IN_TEXT = 0.2  # a brand that fewer of the titles with its word belong to is a common word ("Color", "Simple")
PRICE_BANDS = (0, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
_CATEGORY_TYPES = {word: kind for word, kind in SEEDS.items() if kind in ("audience", "scene", "season", "location")}
_ITEM_BLOCK = 1 << 16  # items whose columns are cut into keywords at a time
_MATCH_BLOCK = 20_000  # texts joined for one pass of the automaton


@dataclass
class KeywordDictionary:
    """The keywords of a catalogue; a keyword's id is its row in ``table``.

    ``table``: ``keyword`` (normal form: lower-case words with blanks between), ``type``, ``structured`` (from a
    column), ``mined`` (may be matched in text), ``score``. A keyword has one type; columns decide before the words do.
    """

    table: pl.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def build(cls, items: pl.DataFrame, clicked: pl.DataFrame | None = None, seed: int = 0) -> KeywordDictionary:
        """Build the dictionary from the items' table.

        ``clicked``: ``query`` and ``item`` row of training events; ranks the keywords unless it is empty.

        Rank of a mined keyword: the clicked pairs whose query and item both have it, then its own score (see ``mine``).
        """
        kinds = ("keyword", "type")
        parts = [matches.group_by(kinds).agg(pl.len().alias("items")) for _, matches in _structured_blocks(items)]
        counts = pl.concat(parts).group_by(kinds).agg(pl.col("items").sum())
        counts = counts.filter(pl.col("items") <= max(len(items) // 2, 1))
        counts = counts.sort("items", "keyword", "type", descending=[True, False, False]).unique(
            "keyword", keep="first", maintain_order=True
        )
        brands = normal_form(items["brand"]).str.strip_chars(" ")
        categories = counts.filter(pl.col("type") == "entity")["keyword"]
        titles = _titles(items)
        mined = mine(titles, brands, categories, min_items=max(3, len(items) // 20_000), seed=seed)
        mined = mined.sort("score", "keyword", descending=[True, False]).head(MAX_MINED)
        in_titles = mined.select("keyword", pl.col("items").alias("in_titles"))
        brand_counts = counts.filter(pl.col("type") == "brand").join(in_titles, on="keyword")
        common = brand_counts.filter(pl.col("items") < BRAND_IN_TEXT * pl.col("in_titles"))["keyword"]
        ambiguous = pl.col("keyword").is_in(common.to_list()) & (pl.col("type") == "brand")
        mined = mined.with_columns(pl.when(ambiguous).then(pl.lit("modifier")).otherwise("type").alias("type"))
        table = counts.join(
            mined.select("keyword", "score", pl.col("type").alias("text_type")),
            on="keyword",
            how="full",
            coalesce=True,
        )
        table = table.select(
            "keyword", pl.coalesce("type", "text_type").alias("type"), pl.col("type").is_not_null().alias("structured"),
            (~pl.col("keyword").is_in(common.to_list()) & ~pl.col("keyword").is_in(list(STOP_WORDS))
             & (pl.col("type").fill_null("") != "price")
             & (pl.col("keyword").str.len_chars() > 1)).alias("mined"),
            pl.coalesce("score", pl.col("items").cast(pl.Float64)).alias("score"),
        ).sort("score", "keyword", descending=[True, False])  # fmt: skip
        dictionary = cls(table.cast(SCHEMA))
        return dictionary if clicked is None or not len(clicked) else dictionary._ranked_by(clicked, items)

    def _ranked_by(self, clicked: pl.DataFrame, items: pl.DataFrame) -> KeywordDictionary:
        """The same keywords, those shared by most clicked query-item pairs first."""
        queries = clicked["query"].unique(maintain_order=True)
        query_keywords = self._in_text(queries, limit=None)
        row = clicked["query"].replace_strict(queries, np.arange(len(queries)), return_dtype=pl.Int64).to_numpy()
        has = self._in_text(_titles(items), limit=None) + self._in_columns(items)
        has.data[:] = 1
        shared = np.zeros(len(self))
        item = clicked["item"].to_numpy()
        for start in range(0, len(row), _MATCH_BLOCK):
            block = slice(start, start + _MATCH_BLOCK)
            shared += np.asarray(query_keywords[row[block]].multiply(has[item[block]]).sum(axis=0)).ravel()
        table = self.table.with_columns(pl.Series("shared", shared)).sort(
            "shared", "score", "keyword", descending=[True, True, False]
        )
        return KeywordDictionary(table.drop("shared"))

    def of_items(self, items: pl.DataFrame) -> sp.csr_matrix:
        """(n, keywords) bool: at most 8 keywords an item. Columns first, then the best-ranked of its title and text.

        New items work too.
        """
        columns = self._in_columns(items, FROM_COLUMNS)
        text = self._in_text(_titles(items), limit=None)
        text = (text - text.multiply((columns + columns @ self._inside).astype(bool))).astype(bool)
        text.eliminate_zeros()
        return (columns + _best(text, PER_TEXT - np.diff(columns.indptr))).astype(bool)

    def of_texts(self, texts: Sequence[str]) -> sp.csr_matrix:
        """(n, keywords) bool: at most 8 keywords a query."""
        return self._in_text(pl.Series(list(texts), dtype=pl.String), limit=PER_TEXT)

    def as_table(self, matches: sp.csr_matrix, names: pl.Series) -> pl.DataFrame:
        """``matches`` as a table: the row's name under ``names.name``, ``keyword`` as a person writes it, ``type``."""
        row, keyword = matches.nonzero()
        kinds = self.table["type"][keyword]
        return pl.DataFrame(
            {names.name: names[row], "keyword": display_form(self.table["keyword"][keyword]), "type": kinds}
        )

    @property
    def has_words(self) -> np.ndarray:
        """(keywords,) bool: keywords that a text encoder can read; a price band has no words."""
        return (self.table["type"] != "price").to_numpy()

    @property
    def display_forms(self) -> list[str]:
        """The keywords as a person writes them, in the order of the table."""
        return display_form(self.table["keyword"]).to_list()

    def save(self, folder: Path) -> None:
        """Write the table into an existing folder."""
        self.table.write_parquet(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> KeywordDictionary:
        """Read the file that ``save`` wrote. Raises ``UserError`` where it is missing."""
        if not (folder / FILE).is_file():
            raise UserError(f"{folder / FILE} is missing; run genrec tokenize again")
        return cls(pl.read_parquet(folder / FILE).cast(SCHEMA))

    @cached_property
    def _automaton(self) -> ahocorasick.Automaton:
        automaton = ahocorasick.Automaton()
        for index, (keyword, mined) in enumerate(self.table.select("keyword", "mined").iter_rows()):
            if mined:
                automaton.add_word(f" {keyword} ", index)
        automaton.make_automaton()
        return automaton

    @cached_property
    def _inside(self) -> sp.csr_matrix:
        """(keywords, keywords) bool: the column's keyword is part of the row's longer one."""
        matches = self._matches(" " + self.table["keyword"] + " ")
        matches.setdiag(False)
        matches.eliminate_zeros()
        return matches

    def _matches(self, normal: pl.Series) -> sp.csr_matrix:
        """(n, keywords) bool: every keyword in the normal forms, short ones inside long ones too."""
        shape = (len(normal), len(self))
        rows, keywords = [], []
        if any(self.table["mined"]):
            for start in range(0, len(normal), _MATCH_BLOCK):
                block = normal[start : start + _MATCH_BLOCK]
                ends = np.cumsum(block.str.len_chars().to_numpy().astype(np.int64) + 1)
                hits = np.fromiter(
                    self._automaton.iter("\n".join(block.to_list())), dtype=[("end", np.int64), ("keyword", np.int64)]
                )
                rows.append(start + np.searchsorted(ends, hits["end"], side="right"))
                keywords.append(hits["keyword"])
        row, keyword = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in (rows, keywords))
        matches = sp.csr_matrix((np.ones(len(row), bool), (row, keyword)), shape=shape)
        matches.sum_duplicates()
        return matches

    def _in_text(self, texts: pl.Series, limit: int | None) -> sp.csr_matrix:
        matches = self._matches(normal_form(texts))
        matches = matches - matches.multiply((matches @ self._inside).astype(bool))
        matches.eliminate_zeros()
        return matches.astype(bool) if limit is None else _best(matches, limit)

    def _in_columns(self, items: pl.DataFrame, limit: int | None = None) -> sp.csr_matrix:
        known = self.table.with_row_index("id").filter(pl.col("structured"))
        rows, ids = [], []
        for begin, matches in _structured_blocks(items):
            matches = matches.join(known, on=["keyword", "type"], how="inner", maintain_order="left")
            if limit:
                matches = matches.filter(pl.int_range(pl.len()).over("row") < limit)
            rows.append(matches["row"].to_numpy() + begin)
            ids.append(matches["id"].to_numpy().astype(np.int64))
        row, keyword = np.concatenate(rows), np.concatenate(ids)
        matrix = sp.csr_matrix((np.ones(len(row), bool), (row, keyword)), shape=(len(items), len(self)))
        matrix.sum_duplicates()
        return matrix


def _structured_blocks(items: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """The first item of each block of items, and their ``structured_keywords``, whose rows begin at 0 in each."""
    for begin in range(0, max(len(items), 1), _ITEM_BLOCK):
        yield begin, structured_keywords(items.slice(begin, _ITEM_BLOCK))


def structured_keywords(items: pl.DataFrame) -> pl.DataFrame:
    """``row``, ``keyword`` (normal form), ``type``: the keywords in the columns of an items table.

    In this order of worth: ``brand``; every level of ``category`` as entity (or audience, scene ... "Women"), specific
    to general; further columns by their name (``COLUMN_TYPES``); ``price`` as a band. Lists and values with commas,
    slashes or ampersands are several keywords; values of more than 6 words are none.
    """
    table = items.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    columns = {"brand": "brand", "category": "entity"} | {
        name: COLUMN_TYPES[name.lower()] for name in items.columns if name.lower() in COLUMN_TYPES
    }
    frames = []
    for column, kind in columns.items():
        values = table.select("row", pl.col(column).alias("value"))
        if isinstance(values.schema["value"], pl.List):
            values = values.with_columns(pl.col("value").list.reverse()).explode("value")
        if values.schema["value"].is_nested():
            continue
        values = values.with_columns(pl.col("value").cast(pl.String)).drop_nulls()
        if column != "brand":
            values = values.with_columns(
                pl.col("value").str.replace_all(r"\s+(?:and|und|et|y)\s+|[,;/|&、，；]", "\n").str.split("\n")
            ).explode("value")
        keyword = (
            normal_form(values["value"]).str.replace_all(r"\|", " ").str.replace_all(r" +", " ").str.strip_chars(" ")
        )
        kinds = keyword.replace_strict(
            _CATEGORY_TYPES if column == "category" else {}, default=kind, return_dtype=pl.String
        )
        frames.append(pl.DataFrame({"row": values["row"], "keyword": keyword, "type": kinds}))
    frames.append(_price_bands(table))
    matches = pl.concat(frames).unique(maintain_order=True)
    return matches.filter((pl.col("keyword") != "") & (pl.col("keyword").str.count_matches(" ") < MAX_STRUCTURED_WORDS))


def _price_bands(table: pl.DataFrame) -> pl.DataFrame:
    names = [
        "price unknown",
        *(f"price {low} to {high}" for low, high in pairwise(PRICE_BANDS)),
        f"price {PRICE_BANDS[-1]} and more",
    ]
    prices = table.select("row", "price").filter(pl.col("price").is_finite() & (pl.col("price") >= 0))
    band = np.searchsorted(np.array(PRICE_BANDS), prices["price"].to_numpy(), side="right")
    return pl.DataFrame(
        {
            "row": prices["row"],
            "keyword": pl.Series(names, dtype=pl.String)[band],
            "type": pl.Series(["price"] * len(prices), dtype=pl.String),
        }
    )


def _titles(items: pl.DataFrame) -> pl.Series:
    """The title, or the text of an item without one."""
    return items.select(
        pl.coalesce(pl.when(pl.col("title").str.strip_chars() != "").then(pl.col("title")), pl.col("text")).fill_null(
            ""
        )
    )["title"]


def _best(matrix: sp.csr_matrix, limit: int | np.ndarray) -> sp.csr_matrix:
    """At most ``limit`` entries a row (one number or (n,)), the best-ranked, which are the lowest columns."""
    matrix = matrix.tocsr().astype(bool)
    matrix.sort_indices()
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = position < np.repeat(np.broadcast_to(limit, matrix.shape[0]), np.diff(matrix.indptr))
    offsets = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((np.ones(int(kept.sum()), bool), matrix.indices[kept], offsets), shape=matrix.shape)


def fuse(vectors: np.ndarray, matches: sp.csr_matrix, keyword_vectors: np.ndarray) -> np.ndarray:
    """``norm(e / 2 + mean of the keyword vectors / 2)``: (n, d) float32; without a known keyword, e.

    ``vectors`` (n, d) unit or zero, ``matches`` (n, keywords) bool, ``keyword_vectors`` (keywords, d) unit, or zero
    where the encoder knows nothing; such keywords are not counted.
    """
    known = matches.astype(np.float32) @ sp.diags((keyword_vectors != 0).any(1).astype(np.float32))
    count = np.asarray(known.sum(axis=1), np.float32).reshape(-1, 1)
    mean = (known @ keyword_vectors) / np.maximum(count, 1)
    return np.where(count > 0, unit((vectors + mean) / 2), vectors).astype(np.float32)


assert len(ATTRIBUTES) == 18 and set(COLUMN_TYPES.values()) <= set(ATTRIBUTES)
