"""Figures of a quality report: use of the codes, quality of the prefixes, tree of the first two levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from genrec.drawing import Theme, plain, save_figure
from genrec.semantic_ids.prefixes import prefix_ids
from genrec.text.encoder import TOKEN_PATTERN

TREE_NODES, TREE_CHILDREN, TREE_WORDS = 12, 4, 4
_NO_NAMES = ENGLISH_STOP_WORDS | {"mr", "mrs", "dr", "ii", "iii", "iv", "vi", "vol", "part", "new", "pack", "set"}


def plot_codebook_use(report: dict[str, Any], path: str | Path) -> None:
    """Draw items per code, most used first, one panel per level, against the even use."""
    levels = list(enumerate(zip(report["code_use"], report["gini"], strict=True)))

    def draw(figure: Figure, theme: Theme) -> None:
        for level, (counts, gini) in levels:
            axes = figure.add_subplot(1, len(levels), level + 1)
            axes.fill_between(range(1, len(counts) + 1), counts, step="mid", color=theme.series[0])
            even = report["items"] / len(counts)
            axes.axhline(even, color=theme.ink, linewidth=0.9, linestyle="--")
            axes.text(len(counts), even, "even use", ha="right", va="bottom", fontsize=7)
            axes.set(xlabel="code, by use", ylim=(0, None))
            axes.set_title(f"Level {level + 1}: {len(counts)} codes\nGini {gini:.2f}", fontsize=9)
            plain(axes, "y")
            if level == 0:
                axes.set_ylabel("items")

    save_figure(Path(path), (2.6 * len(levels), 2.6), draw)


def plot_prefixes(report: dict[str, Any], path: str | Path) -> None:
    """Draw, per prefix length, what a prefix keeps: neighbours, queries' items, and the error of its reconstruction."""
    lengths = list(range(1, len(report["sizes"]) + 1))
    pairs = {"Do the 10 nearest items share it?": report["neighbours"]}
    if report.get("queries"):
        pairs[f"Does a {report['queries']['kind']} query share it with its item?"] = report["queries"]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, len(pairs) + 1, squeeze=False)[0]
        for axes, (title, values) in zip(panels, pairs.items(), strict=False):
            for kind, label, colour in (("shared", "", theme.series[0]), ("random", "two at random", theme.faint)):
                line = np.where(np.array(values[kind]) > 0, values[kind], np.nan)
                axes.plot(lengths, line, marker="o", ms=4, color=colour)
                if label and np.isfinite(line).any():
                    axes.annotate(label, (lengths[0], line[0]), xytext=(4, -11), textcoords="offset points", fontsize=7)
            # Fractions fall tenfold with every level: a linear axis would show the first alone. A 0 is left out.
            axes.set(xlabel="prefix length", xticks=lengths, yscale="log", ylim=(None, 1.5), ylabel="fraction of pairs")
            axes.set_title(title, fontsize=9)
            plain(axes, "y")
        panels[-1].bar(lengths, report["reconstruction_error"], color=theme.series[0])
        panels[-1].set(xlabel="prefix length", xticks=lengths, ylim=(0, None))
        panels[-1].set_title("Reconstruction error", fontsize=9)
        plain(panels[-1], "y")

    save_figure(Path(path), (3.4 * (len(pairs) + 1), 2.7), draw)


def code_tree(
    codes: np.ndarray, texts: Callable[[np.ndarray], Sequence[str]], keywords: pl.Series | None = None
) -> list[dict[str, Any]]:
    """The fullest nodes of the first level and their fullest children, with the words that set them apart.

    `codes` (n, L), `texts` those of some rows; `keywords`, a list of core keywords per item, replace its text where
    given. Each node: `code`, `items`, `words`, `example` (the shortest text of its items) and `children` on the first
    level. A word's weight at a node is p(word | node) log(p(word | node) / p(word | siblings)): frequent below the node
    and rare in the rest of its parent. At most 12 nodes of 4 children.
    """
    counts, words = _word_counts(texts(np.arange(len(codes)))) if keywords is None else _keyword_counts(keywords)
    everywhere = np.asarray(counts.mean(axis=0)).ravel()
    _, prefixes = prefix_ids(codes)
    first = prefixes[:, 0]
    tree = []
    for node in _fullest(first, np.arange(len(codes)), TREE_NODES):
        rows = np.flatnonzero(first == node)
        entry: dict[str, Any] = {
            "code": int(codes[rows[0], 0]),
            "items": len(rows),
            "words": _distinctive(counts[rows], everywhere, words),
            "example": _example(texts, rows),
            "children": [],
        }
        if codes.shape[1] > 1:
            second = prefixes[:, 1]
            inside = np.asarray(counts[rows].mean(axis=0)).ravel()
            for child in _fullest(second, rows, TREE_CHILDREN):
                below = rows[second[rows] == child]
                # A child is named by contrast with its siblings; an only child by contrast with the catalogue.
                known = set(entry["words"])
                named = _distinctive(counts[below], inside, words) if len(below) < len(rows) else []
                entry["children"].append(
                    {
                        "code": int(codes[below[0], 1]),
                        "items": len(below),
                        "words": named or _distinctive(counts[below], everywhere, words, known),
                        "example": _example(texts, below),
                    }
                )
        tree.append(entry)
    return tree


def _example(texts: Callable[[np.ndarray], Sequence[str]], rows: np.ndarray) -> str:
    return min((text for text in texts(rows[:200]) if text), key=len, default="")


def plot_tree(tree: list[dict[str, Any]], path: str | Path, n_first: int) -> None:
    """Draw `code_tree`: its first-level nodes and their fullest children, each with its words and its size as a bar.

    `n_first`, the number of first-level codes in use, appears in the title.
    """
    lines = max(1, sum(1 + len(node["children"]) for node in tree))
    largest = max((node["items"] for node in tree), default=1)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        row = 0
        for node in tree:
            _line(axes, theme, row, node, 0.0, largest, bold=True)
            for offset, child in enumerate(node["children"], 1):
                axes.plot([0.012, 0.012, 0.03], [row + 0.4, row + offset, row + offset], color=theme.faint, lw=0.8)
                _line(axes, theme, row + offset, child, 0.04, largest)
            row += 1 + len(node["children"])
        axes.set(xlim=(0, 1), ylim=(row - 0.4, -0.8))
        axes.set_title(f"The {len(tree)} fullest of {n_first} first codes and their fullest children")
        axes.axis("off")

    save_figure(Path(path), (8.4, 0.6 + 0.2 * lines), draw)


def _line(
    axes: Axes, theme: Theme, row: float, node: dict[str, Any], x: float, largest: int, bold: bool = False
) -> None:
    """A node's code, its words (else an example), and a bar of its items."""
    words = ", ".join(node["words"]) or (f"such as: {node['example']}" if node.get("example") else "items without text")
    weight = "bold" if bold else "normal"
    axes.text(x, row, str(node["code"]), fontsize=7.5, va="center", fontweight=weight)
    axes.text(x + 0.045, row, shorten(words, 92, placeholder=" ..."), fontsize=7.5, va="center", fontweight=weight)
    axes.barh(row, 0.14 * node["items"] / largest, 0.55, left=0.8, color=theme.series[0 if bold else 4])
    axes.text(0.8 + 0.14 * node["items"] / largest + 0.006, row, f"{node['items']:,}", fontsize=7, va="center")


def _word_counts(texts: Sequence[str]) -> tuple[csr_matrix, np.ndarray]:
    counter = CountVectorizer(
        lowercase=True, token_pattern=TOKEN_PATTERN, binary=True, dtype=np.float32, max_features=20_000
    )
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # no words at all
        return _no_words(len(texts))
    words = counter.get_feature_names_out()
    readable = np.array([len(word) > 1 and word not in _NO_NAMES and not word.isdigit() for word in words])
    return (counts[:, readable], words[readable]) if readable.any() else _no_words(len(texts))


def _no_words(n: int) -> tuple[csr_matrix, np.ndarray]:
    return csr_matrix(np.zeros((n, 1), np.float32)), np.array([""])


def _keyword_counts(keywords: pl.Series) -> tuple[csr_matrix, np.ndarray]:
    """Which items (n,) have which keywords: (n, keywords) and the keywords."""
    pairs = (
        pl.DataFrame({"item": np.arange(len(keywords)), "keyword": keywords})
        .explode("keyword")
        .drop_nulls()
        .unique(maintain_order=True)
    )
    words = pairs["keyword"].unique().sort()
    if not len(words):
        return _no_words(len(keywords))
    column = pairs["keyword"].replace_strict(words, np.arange(len(words)), return_dtype=pl.Int64).to_numpy()
    ones, positions = np.ones(len(pairs), np.float32), (pairs["item"].to_numpy(), column)
    return csr_matrix((ones, positions), shape=(len(keywords), len(words))), np.array(words.to_list())


def _distinctive(
    below: csr_matrix, everywhere: np.ndarray, words: np.ndarray, known: set[str] | frozenset[str] = frozenset()
) -> list[str]:
    """The distinctive words of a node.

    ``below``: word counts (m, n_words) of its items. ``everywhere`` (n_words,): the fraction of all items with a word.
    """
    here = np.asarray(below.mean(axis=0)).ravel()
    # A word of one item, or of few among many, does not name a node.
    minimum = max(min(2, below.shape[0]), 0.05 * below.shape[0])
    here = np.where(here * below.shape[0] > minimum - 1e-3, here, 0)
    weight = here * np.log(np.where(here > 0, here, 1) / np.maximum(everywhere, 1e-9))
    chosen: list[str] = []
    for index in np.argsort(-weight, kind="stable")[: 4 * TREE_WORDS + len(known)]:
        word = str(words[index])
        redundant = any(
            f" {word} " in f" {other} " or f" {other} " in f" {word} " for other in chosen
        )  # "opi" next to "opi nail lacquer"
        if weight[index] > 0.02 and word not in known and not redundant and len(chosen) < TREE_WORDS:
            chosen.append(word)
    return chosen


def _fullest(nodes: np.ndarray, rows: np.ndarray, limit: int) -> np.ndarray:
    pairs, counts = np.unique(nodes[rows], return_counts=True)
    return pairs[np.argsort(-counts, kind="stable")[:limit]]
