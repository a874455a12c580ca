"""Mining of core keywords: which word groups of a catalogue's titles are worth naming, and of which type they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.data.queries import STOP_WORDS
from genrec.semantic_ids.keyword_types import type_of
from genrec.text.encoder import SPACELESS, TOKEN_PATTERN

MAX_WORDS = 4  # words (characters, where a script has no spaces) of a keyword
MIN_COHESION = 0.3  # normalised pointwise mutual information below which neighbours are just neighbours
MAX_ITEM_SHARE = 0.2  # a word group in more items than this distinguishes none
MAX_TITLES = 200_000  # mined; a larger catalogue is sampled
SERIES_SHARE = 0.9  # of a word group's items are of one brand: a product line
FINAL_SHARE = 0.5  # of a word group's positions end a phrase: it names the thing
COVERED_SHARE = 0.8  # of a word group's items also have the same longer group: only the longer one is a keyword
_JOINERS = frozenset(
    [
        "for",
        "with",
        "and",
        "in",
        "by",
        "of",
        "to",
        "from",
        "on",
        "or",
        "de",
        "la",
        "le",
        "les",
        "du",
        "des",
        "et",
        "el",
        "y",
        "und",
        "mit",
        "der",
        "die",
        "das",
    ]
)
_EMPTY = frozenset(
    ["all", "one", "us", "now", "more", "no", "not", "can", "will", "only", "very", "just", "any", "each", "both", "x"]
)
_KEYWORD_TOKEN = rf"\d+(?:[.,]\d+)+|{TOKEN_PATTERN}|[,;:|()\[\]/•–—+&!?，。、；：（）【】]"
_BREAK = rf"^[^\w{SPACELESS}]+$"
_HAN = rf"([{SPACELESS}]) "


def normal_form(texts: pl.Series) -> pl.Series:
    """Lower-case words with one blank on either side and ``|`` for what ends a phrase.

    "Red Shoes, new" -> " red shoes | new ".
    """
    words = texts.fill_null("").str.to_lowercase().str.replace_all("['’]s\\b", "s").str.extract_all(_KEYWORD_TOKEN)
    words = words.list.eval(pl.when(pl.element().str.contains(_BREAK)).then(pl.lit("|")).otherwise(pl.element()))
    return pl.select(pl.lit(" ") + words.list.join(" ") + pl.lit(" ")).to_series()


def display_form(keywords: pl.Series) -> pl.Series:
    """How a person writes the keyword: no blanks between characters of scripts without spaces."""
    return keywords.str.replace_all(_HAN, "$1")


_SCHEMA = {"keyword": pl.String, "items": pl.Int64, "score": pl.Float64, "final": pl.Float64, "one_brand": pl.Float64}


@dataclass
class _Grams:
    """Word groups of one length.

    ``of`` (positions,): group of each text position or -1, ``words`` (groups, n) word ids, ``items`` (groups,) counts.
    """

    of: np.ndarray
    words: np.ndarray
    items: np.ndarray


def mine(titles: pl.Series, brands: pl.Series, categories: pl.Series, min_items: int, seed: int) -> pl.DataFrame:
    """Frequent, informative word groups of titles: ``keyword`` (normal form), ``type``, ``items``, ``score``.

    Kept are groups of 1 to 4 words in at least ``min_items`` and at most a fifth of the titles, without a stop word at
    either end, and, from two words on, held together: normalised pointwise mutual information of every split at least
    0.3. The score is ``items x log(N / items) x cohesion``, cohesion of a single word being 0.5. ``brands`` and
    ``categories`` (normal forms of names) help to type.
    """
    if len(titles) > MAX_TITLES:
        rows = np.sort(np.random.default_rng(seed).choice(len(titles), MAX_TITLES, replace=False))
        titles, brands = titles[rows], brands[rows]
    n = len(titles)
    flat = pl.DataFrame(
        {"item": np.arange(n), "word": normal_form(titles).str.strip_chars(" ").str.split(" ")}
    ).explode("word")
    words = flat["word"].fill_null("|").replace("", "|")
    vocabulary = words.unique(maintain_order=True)
    word = words.replace_strict(vocabulary, np.arange(len(vocabulary)), return_dtype=pl.Int64).to_numpy().copy()
    word[(words == "|").to_numpy()] = -1
    item = flat["item"].to_numpy()
    names = vocabulary.to_list()
    stop = np.array([name in STOP_WORDS or name in _JOINERS or name in _EMPTY for name in names])
    ends = _phrase_ends(word, item, np.array([name in _JOINERS for name in names]))
    lengths: list[_Grams] = []
    frames = []
    for size in range(1, MAX_WORDS + 1):
        grams = _group(lengths, word, item, size)
        lengths.append(grams)
        if not len(grams.items):
            break
        cohesion = _cohesion(lengths, size, n)
        first, last = grams.words[:, 0], grams.words[:, -1]
        keep = (
            (grams.items >= min_items)
            & (grams.items <= max(MAX_ITEM_SHARE * n, min_items))
            & ~stop[first]
            & ~stop[last]
        )
        keep &= cohesion >= MIN_COHESION if size > 1 else np.array([_single(name) for name in names])[first]
        frames.append(_described(grams, np.flatnonzero(keep), cohesion, ends, size, item, brands, names, n))
    groups = pl.concat(frames) if frames else pl.DataFrame(schema=_SCHEMA)
    return _typed(_without_parts(groups), set(brands.drop_nulls().to_list()), set(categories.to_list())).select(
        "keyword", "type", "items", "score"
    )


def _single(name: str) -> bool:
    """Whether the word is a keyword by itself: no number, and more than one letter or character."""
    return len(name) > 1 and not name.replace(".", "").replace(",", "").isdigit()


def _phrase_ends(word: np.ndarray, item: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """(positions,) bool: the title, a mark or a joining word follows."""
    after = np.append(word[1:], -1)
    after[np.append(item[1:] != item[:-1], True)] = -1
    return (after < 0) | stop[np.maximum(after, 0)]


def _group(lengths: list[_Grams], word: np.ndarray, item: np.ndarray, size: int) -> _Grams:
    """Groups of ``size`` words: each is a group one shorter and the word after it."""
    if size == 1:
        code = word
    else:
        shorter, base = lengths[-1], int(word.max()) + 1
        after = np.full(len(word), -1)
        after[: len(word) - size + 1] = word[size - 1 :]
        inside = np.zeros(len(word), bool)
        inside[: len(word) - size + 1] = item[size - 1 :] == item[: len(word) - size + 1]
        code = np.where((shorter.of >= 0) & (after >= 0) & inside, shorter.of * base + after, -1)
    positions = np.flatnonzero(code >= 0)
    values, first, of = np.unique(code[positions], return_index=True, return_inverse=True)
    whole = np.full(len(word), -1)
    whole[positions] = of
    start = positions[first]
    pairs = np.unique(of * (int(item[-1]) + 1 if len(item) else 1) + item[positions])
    counts = np.bincount(pairs // (int(item[-1]) + 1 if len(item) else 1), minlength=len(values))
    return _Grams(
        whole, np.column_stack([word[start + step] for step in range(size)]).reshape(len(values), size), counts
    )


def _cohesion(lengths: list[_Grams], size: int, n: int) -> np.ndarray:
    """Normalised pointwise mutual information of the weakest split of each group: (groups,), 0.5 for single words."""
    grams = lengths[size - 1]
    if size == 1:
        return np.full(len(grams.items), 0.5)
    position = np.zeros(len(grams.items), np.int64)
    used = np.flatnonzero(grams.of >= 0)
    position[grams.of[used]] = used  # any position of the group
    whole = np.log(grams.items / n)
    weakest = np.full(len(grams.items), np.inf)
    for cut in range(1, size):
        left, right = lengths[cut - 1], lengths[size - cut - 1]
        parts = np.log(left.items[left.of[position]] / n) + np.log(right.items[right.of[position + cut]] / n)
        weakest = np.minimum(weakest, (whole - parts) / np.maximum(-whole, 1e-9))
    return weakest


def _described(grams, kept, cohesion, ends, size, item, brands, names, n) -> pl.DataFrame:
    """The kept groups with their score, how often they end a phrase, and the fraction of their most common brand."""
    position = np.flatnonzero(grams.of >= 0)
    of = grams.of[position]
    final = np.bincount(of, weights=ends[position + size - 1], minlength=len(grams.items)) / np.maximum(
        np.bincount(of, minlength=len(grams.items)), 1
    )
    owner = pl.DataFrame({"gram": of, "item": item[position]}).filter(pl.col("gram").is_in(kept)).unique()
    owner = owner.with_columns(pl.Series("brand", brands.to_numpy()[owner["item"].to_numpy()], dtype=pl.String))
    top = (
        owner.filter(pl.col("brand").is_not_null() & (pl.col("brand") != ""))
        .group_by("gram", "brand")
        .len()
        .group_by("gram")
        .agg(pl.col("len").max())
    )
    most = np.zeros(len(grams.items))
    most[top["gram"].to_numpy()] = top["len"].to_numpy()
    items = grams.items[kept]
    columns = {
        "keyword": [" ".join(names[word] for word in row) for row in grams.words[kept].tolist()],
        "items": items.astype(np.int64),
        "score": items * np.log(n / items) * cohesion[kept],
        "final": final[kept],
        "one_brand": most[kept] / items,
    }
    return pl.DataFrame(columns, schema=_SCHEMA)


def _without_parts(groups: pl.DataFrame) -> pl.DataFrame:
    """Drop groups that are nearly always part of one longer group: "polka" where "polka dot" is a keyword."""
    longer = groups.filter(pl.col("keyword").str.contains(" ", literal=True)).select(
        "keyword", pl.col("items").alias("with")
    )
    parts = [
        longer.select(pl.col("keyword").str.replace(cut, "").alias("keyword"), "with")
        for cut in (r" [^ ]+$", r"^[^ ]+ ")
    ]
    most = pl.concat(parts).group_by("keyword").agg(pl.col("with").max())
    joined = groups.join(most, on="keyword", how="left", maintain_order="left")
    return joined.filter(pl.col("with").fill_null(0) < COVERED_SHARE * pl.col("items")).drop("with")


def _typed(groups: pl.DataFrame, brands: set[str], categories: set[str]) -> pl.DataFrame:
    """Add the type of each keyword: the first of four rules that applies.

    Rules: names of brands and categories, the words of the keyword, the line of one brand, the position in the phrase.
    """
    heads = {name.split(" ")[-1] for name in categories}
    kinds = []
    for keyword, final, one_brand in groups.select("keyword", "final", "one_brand").iter_rows():
        words = keyword.split(" ")
        if keyword in brands:
            kinds.append("brand")
        elif keyword in categories:
            kinds.append("entity")
        elif kind := type_of(words):
            kinds.append(kind)
        elif words[-1] in heads or words[-1] + "s" in heads:
            kinds.append("entity")
        elif one_brand >= SERIES_SHARE:
            kinds.append("series")
        else:
            kinds.append("entity" if final >= FINAL_SHARE else "modifier")
    return groups.with_columns(pl.Series("type", kinds, dtype=pl.String))
