"""Which facets of an item a query names: levels of its category, its brand, values of its attributes.

BM25 adds up stems, so an item of "Hair Care" can be level with one of "Hair Treatments" whose title says hair twice. A
query for a category has all words of its levels: whether an item's facets stand in the query as a whole, and how much
of the query they say, tells its items from those that share a word with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.catalogue.growing import append_rows
from genrec.retrieval.title_words import MAX_WORDS, word_hashes
from genrec.text.analysis import analyzer, words_of
from genrec.text.facets import CATEGORY, item_facets

N_FEATURES = 5


@dataclass(frozen=True)
class FacetWords:
    """Distinct facets and those of each item.

    Facet f has the terms ``terms[term_offsets[f]:term_offsets[f + 1]]`` (uint32 hashes of stems without stop words) and
    is a level of a category where ``is_category[f]``. Item i has ``facets[offsets[i]:offsets[i + 1]]``.
    """

    terms: np.ndarray
    term_offsets: np.ndarray
    is_category: np.ndarray
    facets: np.ndarray
    offsets: np.ndarray
    language: str

    @classmethod
    def of(cls, items: pl.DataFrame | Sequence[str], language: str) -> FacetWords:
        """The facets of ``items``: a table with the items' columns; texts alone have none."""
        parts = [
            table.with_columns(pl.lit(name == CATEGORY).alias("category")) for name, table in item_facets(items).items()
        ]
        empty = pl.DataFrame(schema={"item": pl.Int64, "text": pl.String, "category": pl.Boolean})
        rows = pl.concat(
            [empty, *(part.select(pl.col(name).cast(kind) for name, kind in empty.schema.items()) for part in parts)]
        )
        distinct = rows.select("text", "category").unique(maintain_order=True).with_row_index("facet")
        listed = [_terms(text, language) for text in distinct["text"]]
        hashed = word_hashes([word for words in listed for word in words])
        rows = rows.join(distinct, on=["text", "category"], maintain_order="left").sort("item", maintain_order=True)
        counts = np.bincount(rows["item"].to_numpy(), minlength=len(items)).astype(np.int64)
        return cls(
            hashed,
            np.cumsum([0, *map(len, listed)], dtype=np.int64),
            distinct["category"].to_numpy(),
            rows["facet"].to_numpy().astype(np.int32),
            np.concatenate([[0], np.cumsum(counts)]),
            language,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def grown(self, added: FacetWords) -> FacetWords:
        """These items with ``added`` ones behind them."""
        return FacetWords(
            append_rows(self.terms, added.terms),
            append_rows(self.term_offsets, added.term_offsets[1:] + self.term_offsets[-1]),
            append_rows(self.is_category, added.is_category),
            append_rows(self.facets, added.facets + np.int32(len(self.is_category))),
            append_rows(self.offsets, added.offsets[1:] + self.offsets[-1]),
            self.language,
        )

    def match(self, queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
        """What the facets of items (B, K) say of each query: (B, K, 5) float32, 0 without a query.

        The fraction of its terms that the category has; that levels of the category have which stand in the query as a
        whole; the fraction of the levels that do; whether the category has all terms; and the fraction of the terms
        that any such facets have, of brand and attributes too.
        """
        result = np.zeros((*ids.shape, N_FEATURES), np.float32)
        for row, text in enumerate(queries):
            terms = word_hashes(_terms(text, self.language)[:MAX_WORDS]) if text else np.zeros(0, np.uint32)
            if len(terms):
                result[row] = self._match(terms, ids[row])
        return result

    def _match(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The same of one query's terms (Q,) and items (K,): (K, 5)."""
        result = np.zeros((len(ids), N_FEATURES), np.float32)
        lengths = self.offsets[ids + 1] - self.offsets[ids]
        some = np.flatnonzero(lengths)
        if not len(some):
            return result
        lengths = lengths[some]
        starts = np.cumsum(lengths) - lengths
        owned = self.facets[_ranges(self.offsets[ids[some]], lengths)]
        distinct, which = np.unique(owned, return_inverse=True)
        has, whole = self._named(query, distinct)
        category = self.is_category[distinct][which]
        has, whole = has[which], whole[which]
        named = np.where(whole, has, np.uint32(0))
        covered, of_levels, of_facets = (
            _ones(np.bitwise_or.reduceat(masks, starts), len(query)) / np.float32(len(query))
            for masks in (np.where(category, has, np.uint32(0)), np.where(category, named, np.uint32(0)), named)
        )
        levels, whole_levels = (np.add.reduceat(part.astype(np.int64), starts) for part in (category, category & whole))
        result[some] = np.stack(
            [covered, of_levels, whole_levels / np.maximum(levels, 1), covered == 1, of_facets], axis=1
        )
        return result

    def _named(self, query: np.ndarray, facets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The query's terms that each facet (F,) has, a bit for each, and whether the query has all of the facet's."""
        lengths = self.term_offsets[facets + 1] - self.term_offsets[facets]
        has, whole = np.zeros(len(facets), np.uint32), np.zeros(len(facets), bool)
        some = np.flatnonzero(lengths)
        if len(some):
            lengths = lengths[some]
            starts = np.cumsum(lengths) - lengths
            terms = self.terms[_ranges(self.term_offsets[facets[some]], lengths)]
            same = terms[:, None] == query
            bits = np.where(same, np.uint32(1) << np.arange(len(query), dtype=np.uint32), np.uint32(0))
            has[some] = np.bitwise_or.reduceat(bits.max(1), starts)
            whole[some] = np.logical_and.reduceat(same.any(1), starts)
        return has, whole

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {
            "facet_terms": self.terms,
            "facet_term_offsets": self.term_offsets,
            "facet_is_category": self.is_category,
            "item_facets": self.facets,
            "item_facet_offsets": self.offsets,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], language: str) -> FacetWords:
        """Inverse of ``state``."""
        return cls(
            state["facet_terms"],
            state["facet_term_offsets"],
            state["facet_is_category"],
            state["item_facets"],
            state["item_facet_offsets"],
            language,
        )

    def first(self, n_items: int) -> FacetWords:
        """The first ``n_items`` items."""
        offsets = self.offsets[: n_items + 1]
        return FacetWords(
            self.terms, self.term_offsets, self.is_category, self.facets[: offsets[-1]], offsets, self.language
        )


def _terms(text: str, language: str) -> list[str]:
    """The distinct stems of a text's words that carry meaning, in order."""
    own = analyzer(language)
    return list(dict.fromkeys(own.stems(own.content(words_of(text)))))


def _ones(masks: np.ndarray, n_bits: int) -> np.ndarray:
    """How many of the first bits of each mask (n,) are set."""
    return (masks[:, None] >> np.arange(n_bits, dtype=np.uint32) & np.uint32(1)).sum(1)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers from each start on, as many as its length, one range behind the other."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
