"""Figures of a quality report: use of the codes, quality of the prefixes, tree of the first two levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from genrec.semantic_ids.prefixes import prefix_ids
from genrec.text.encoder import TOKEN_PATTERN

TREE_NODES, TREE_CHILDREN, TREE_WORDS = 12, 4, 4
_STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "into",
        "is",
        "it",
        "of",
        "on",
        "or",
        "s",
        "t",
        "the",
        "to",
        "with",
        "your",
    ]
)


def plot_codebook_use(report: dict[str, Any], path: str | Path) -> None:
    """Draw items per code, most used first, one panel per level, against the even use.

    `path`'s ending picks the format.
    """
    figure = _figure(3.2 * len(report["code_use"]), 3.0)
    panels = figure.subplots(1, len(report["code_use"]), squeeze=False)[0]
    for level, (panel, counts) in enumerate(zip(panels, report["code_use"], strict=True)):
        panel.fill_between(range(1, len(counts) + 1), counts, step="mid", alpha=0.6)
        panel.axhline(report["items"] / len(counts), color="black", linewidth=0.8, linestyle="--", label="even use")
        panel.set(
            title=f"level {level + 1}: {len(counts)} codes, Gini {report['gini'][level]:.2f}", xlabel="code, by use"
        )
        panel.title.set_fontsize("small")
    panels[0].set_ylabel("items")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_prefixes(report: dict[str, Any], path: str | Path) -> None:
    """Draw, per prefix length, what a prefix keeps: neighbours, queries' items, and the error of its reconstruction."""
    figure = _figure(8.0, 3.2)
    kept, error = figure.subplots(1, 2)
    lengths = range(1, len(report["sizes"]) + 1)
    pairs = {"10 nearest neighbours": report["neighbours"]}
    if report.get("queries"):
        pairs[f"{report['queries']['kind']} query and its item"] = report["queries"]
    for name, values in pairs.items():
        shared, random = (np.where(np.array(values[kind]) > 0, values[kind], np.nan) for kind in ("shared", "random"))
        line = kept.plot(lengths, shared, marker="o", label=name)[0]
        kept.plot(lengths, random, linestyle=":", color=line.get_color())
    kept.plot([], [], linestyle=":", color="black", label="two at random")
    # shares fall tenfold with every level, so that a linear axis would show the first alone; a share of 0 is left out
    kept.set(
        title="share with the same prefix", xlabel="prefix length", xticks=list(lengths), yscale="log", ylim=(None, 1.5)
    )
    kept.legend(fontsize="x-small", loc="upper right")
    error.bar(lengths, report["reconstruction_error"], alpha=0.7)
    error.set(title="reconstruction error", xlabel="prefix length", xticks=list(lengths), ylim=(0, None))
    figure.savefig(path, dpi=120)


def code_tree(codes: np.ndarray, texts: Sequence[str], keywords: pl.Series | None = None) -> list[dict[str, Any]]:
    """The fullest nodes of the first level and their fullest children, with the words that set them apart.

    `codes` (n, L), `texts` one per item; `keywords`, a list of core keywords per item, replace its text where
    given. Each node: `code`, `items`, `words`, and `children` on the first level. A word's weight at a node is p(word |
    node) log(p(word | node) / p(word)): frequent below the node and rare elsewhere. At most 12 nodes of 4 children.
    """
    counts, words = _word_counts(texts) if keywords is None else _keyword_counts(keywords)
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
            "children": [],
        }
        if codes.shape[1] > 1:
            second = prefixes[:, 1]
            for child in _fullest(second, rows, TREE_CHILDREN):
                below = rows[second[rows] == child]
                known = set(entry["words"])  # a child shows what its parent has not said
                entry["children"].append(
                    {
                        "code": int(codes[below[0], 1]),
                        "items": len(below),
                        "words": _distinctive(counts[below], everywhere, words, known),
                    }
                )
        tree.append(entry)
    return tree


def plot_tree(tree: list[dict[str, Any]], path: str | Path, n_first: int) -> None:
    """Draw `code_tree`: the catalogue, its fullest first-level nodes, and their fullest children, each with its words.

    `n_first` is the number of first-level codes in use, said in the title.
    """
    lines = max(1, sum(max(1, len(node["children"])) for node in tree))
    figure = _figure(11.0, 0.8 + 0.24 * lines)
    axes = figure.add_subplot()
    position = 0.0
    middles = []
    for node in tree:
        height = max(1, len(node["children"]))
        middle = position + (height - 1) / 2
        middles.append(middle)
        _label(axes, 0.10, middle, node, 44, bold=True)
        for offset, child in enumerate(node["children"]):
            axes.plot([0.46, 0.52], [middle, position + offset], color="0.6", linewidth=0.8)
            _label(axes, 0.53, position + offset, child, 66)
        position += height
    root = float(np.mean(middles)) if middles else 0.0
    for middle in middles:
        axes.plot([0.02, 0.09], [root, middle], color="0.6", linewidth=0.8)
    axes.set(
        xlim=(0, 1),
        ylim=(position, -1),
        title=f"code (items): words of the {len(tree)} fullest of {n_first} first codes, and of their fullest children",
    )
    axes.title.set_fontsize("small")
    axes.axis("off")
    figure.savefig(path, dpi=110)


def _label(axes: Axes, x: float, y: float, node: dict[str, Any], width: int, bold: bool = False) -> None:
    text = shorten(", ".join(node["words"]), width, placeholder=" ...") or "no words of its own"
    # a dollar sign would start matplotlib's formulas
    text = f"{node['code']} ({node['items']:,}): {text}".replace("$", r"\$")
    axes.text(x, y, text, fontsize=7, va="center", fontweight="bold" if bold else "normal")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # its own canvas: no global pyplot state, no display needed
    return figure


def _word_counts(texts: Sequence[str]) -> tuple[csr_matrix, np.ndarray]:
    counter = CountVectorizer(
        lowercase=True, token_pattern=TOKEN_PATTERN, binary=True, dtype=np.float32, max_features=20_000
    )
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # no words at all
        return _no_words(len(texts))
    words = counter.get_feature_names_out()
    readable = np.array([len(word) > 1 and word not in _STOP and not word.isdigit() for word in words])
    return (counts[:, readable], words[readable]) if readable.any() else _no_words(len(texts))


def _no_words(n: int) -> tuple[csr_matrix, np.ndarray]:
    return csr_matrix(np.zeros((n, 1), np.float32)), np.array([""])


def _keyword_counts(keywords: pl.Series) -> tuple[csr_matrix, np.ndarray]:
    """Which items (n,) have which keywords: (n, keywords) and the keywords."""
    found = (
        pl.DataFrame({"item": np.arange(len(keywords)), "keyword": keywords})
        .explode("keyword")
        .drop_nulls()
        .unique(maintain_order=True)
    )
    words = found["keyword"].unique().sort()
    if not len(words):
        return _no_words(len(keywords))
    column = found["keyword"].replace_strict(words, np.arange(len(words)), return_dtype=pl.Int64).to_numpy()
    ones, positions = np.ones(len(found), np.float32), (found["item"].to_numpy(), column)
    return csr_matrix((ones, positions), shape=(len(keywords), len(words))), np.array(words.to_list())


def _distinctive(
    below: csr_matrix, everywhere: np.ndarray, words: np.ndarray, known: set[str] | frozenset[str] = frozenset()
) -> list[str]:
    """The distinctive words of a node.

    ``below``: word counts (m, n_words) of its items. ``everywhere`` (n_words,): the fraction of all items with a word.
    """
    here = np.asarray(below.mean(axis=0)).ravel()
    here = np.where(
        here * below.shape[0] > min(1, below.shape[0] - 1), here, 0
    )  # a word of one item does not name a node of several
    weight = here * np.log(np.where(here > 0, here, 1) / np.maximum(everywhere, 1e-9))
    chosen: list[str] = []
    for index in np.argsort(-weight, kind="stable")[: 4 * TREE_WORDS + len(known)]:
        word = str(words[index])
        said = any(
            f" {word} " in f" {other} " or f" {other} " in f" {word} " for other in chosen
        )  # "opi" next to "opi nail lacquer"
        if here[index] > 0 and word not in known and not said and len(chosen) < TREE_WORDS:
            chosen.append(word)
    return chosen


def _fullest(nodes: np.ndarray, rows: np.ndarray, limit: int) -> np.ndarray:
    found, counts = np.unique(nodes[rows], return_counts=True)
    return found[np.argsort(-counts, kind="stable")[:limit]]
