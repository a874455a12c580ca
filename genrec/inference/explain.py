"""Why an item is recommended: related history items, shared words, features, and its path through the code tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from genrec.data.dataset import Requests
from genrec.generation.beam import beam_search
from genrec.generation.options import SearchOptions
from genrec.generation.scorers import CachedScorer
from genrec.inference.reasons import Neighbour, related, shared_words
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.model.code_decoder import Memory
from genrec.model.node_vectors import NodeVectors
from genrec.objectives.generation import path_log_probabilities
from genrec.ranking.features import FEATURES
from genrec.retrieval.allowed import AllowedItems

NEIGHBOURS = 5
INTERACTIONS = "interactions"


@dataclass(frozen=True)
class Step:
    """One step down the code tree: the code, its probability among ``choices`` children, and the items below."""

    code: int
    probability: float | None
    choices: int
    items: int


@dataclass(frozen=True)
class Keyword:
    """A core keyword of the item, of one of 18 attribute types; the keywords shape its codes.

    ``in_query``: the query has it too.
    """

    keyword: str
    type: str
    in_query: bool


@dataclass(frozen=True)
class ScoreDetail:
    """The value of one candidate feature, and its contribution to the fused score."""

    value: float
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Why an item is recommended.

    ``features`` by name (``genrec.ranking.features.FEATURES``), and "interactions": what the re-ranker's network adds
    for all of them together. The contributions add up to ``score``. ``path`` probabilities are None for a model
    without generation.
    """

    item_id: str
    title: str | None
    neighbours: list[Neighbour]
    words: list[str]
    keywords: list[Keyword]
    path: list[Step]
    features: dict[str, ScoreDetail]
    score: float


@dataclass(frozen=True)
class WalkNode:
    """A tree node of the beam: its id, its parent's, its code, the number of items below, and keywords they share."""

    node: int
    parent: int
    code: int
    items: int
    keywords: list[str]


@dataclass(frozen=True)
class WalkItem:
    """An item of a leaf."""

    item_id: str
    title: str | None


@dataclass(frozen=True)
class WalkLeaf:
    """A leaf that the beam ends at, its log-probability and its items."""

    node: int
    log_probability: float
    items: list[WalkItem]


@dataclass(frozen=True)
class Walk:
    """Levels of the beam from the first below the root to the leaves, best nodes first, and the leaves."""

    levels: list[list[WalkNode]]
    leaves: list[WalkLeaf]


@torch.inference_mode()
def explain(snapshot: CatalogueSnapshot, requests: Requests, item_id: str) -> Explanation:
    """Explain one item for one request. ``UserError`` for an unknown item."""
    item = int(snapshot.indices([item_id])[0])
    score, features = _features(snapshot, requests, item)
    query = requests.query_texts[requests.request_queries[0]] if requests.request_queries[0] >= 0 else ""
    return Explanation(
        item_id,
        snapshot.titles[item],
        related(snapshot, requests.items, np.array([item]), NEIGHBOURS)[0],
        shared_words(snapshot, query, np.array([item]))[0],
        _keywords(snapshot, query, item),
        _path(snapshot, requests, item),
        features,
        score,
    )


def _keywords(snapshot: CatalogueSnapshot, query: str, item: int) -> list[Keyword]:
    """The item's keywords, those that the query has too first; none where keywords are off."""
    finder = snapshot.ids.words.keywords
    if finder is None:
        return []
    query_keywords = set(finder.as_table(finder.of_texts([query]), pl.Series("query", [query]))["keyword"])
    keywords = [Keyword(keyword, kind, keyword in query_keywords) for keyword, kind in _item_keywords(snapshot, item)]
    return sorted(keywords, key=lambda keyword: not keyword.in_query)


def _item_keywords(snapshot: CatalogueSnapshot, item: int) -> list[tuple[str, str]]:
    """(keyword, type) of an item."""
    finder = snapshot.ids.words.keywords
    if finder is None:
        return []
    known = snapshot.ids.keywords_of(snapshot.item_ids[item])
    if known:
        return known
    row = snapshot.table[item]  # added after the semantic IDs were fitted, or without a keyword
    return list(finder.as_table(finder.of_items(row), row["item_id"]).select("keyword", "type").iter_rows())


def _features(snapshot: CatalogueSnapshot, requests: Requests, item: int) -> tuple[float, dict[str, ScoreDetail]]:
    """The item's fused score and its parts, among the request's own candidates; alone where it was none."""
    search = bool(requests.request_queries[0] >= 0)
    reranker = snapshot.ranker.rerankers["search" if search else "recommendation"]
    options = SearchOptions(exclude_seen=not search, allowed=AllowedItems(mask=torch.from_numpy(~snapshot.removed)))
    _, _, candidates = next(snapshot.ranker.candidates(requests, options))
    if candidates.ids is None or item not in candidates.ids[0].tolist():
        alone = SearchOptions(exclude_seen=False, allowed=AllowedItems(only=torch.tensor([[item]])))
        _, _, candidates = next(snapshot.ranker.candidates(requests, alone))
    assert candidates.ids is not None and candidates.features is not None
    values = candidates.features[0][candidates.ids[0] == item][0]
    contributions, together = reranker.contributions(values)
    details = {
        name: ScoreDetail(value, part)
        for name, value, part in zip(FEATURES, values.tolist(), contributions.tolist(), strict=True)
    }
    if together is not None:
        details[INTERACTIONS] = ScoreDetail(float(together), float(together))
    return float(reranker.scores(values)), details


def _memory(snapshot: CatalogueSnapshot, requests: Requests) -> Memory:
    generator = snapshot.ranker.generator
    batch = (
        snapshot.ranker.collator(requests.query_texts, requests.request_queries)
        .requests(requests)
        .to(generator.items.device)
    )
    return generator.network.decoder_memory(generator.network.encode(batch, generator.items))


def _path(snapshot: CatalogueSnapshot, requests: Requests, item: int) -> list[Step]:
    generator = snapshot.ranker.generator
    trie, decoder = snapshot.catalogue.trie, generator.network.decoder
    nodes = trie.item_path[item]
    parents = torch.cat([nodes.new_zeros(1), nodes[:-1]])
    probabilities: list[float | None] = [None] * trie.depth
    if decoder is not None and generator.nodes is not None:
        memory = _memory(snapshot, requests)
        device, scale = generator.nodes.device, decoder.log_scale.exp()
        states, _ = decoder.hidden(memory, generator.nodes, parents[None, None].to(device))
        every = generator.nodes
        vectors, row = (every.table, every.rows) if isinstance(every, NodeVectors) else (every, None)
        steps = path_log_probabilities(
            states.flatten(0, 1),
            scale,
            vectors,
            generator.network.catalogue.trie,
            nodes[None].to(device),
            row,
            memory.biases,
        )
        probabilities = list(steps[0].exp().tolist())
    columns = (trie.node_code[nodes], trie.child_count[parents], trie.node_item_count[nodes])
    return [
        Step(code, probability, choices, items)
        for probability, code, choices, items in zip(probabilities, *(one.tolist() for one in columns), strict=True)
    ]


@torch.inference_mode()
def walk(
    snapshot: CatalogueSnapshot, requests: Requests, width: int, exclude_seen: bool = False, blocked: Sequence[str] = ()
) -> Walk:
    """The beam search of one request: the leaves it ends at and the nodes on the way to them, level by level.

    Removed and ``blocked`` items are not reached, with ``exclude_seen`` those of the history neither. Empty for a
    model without generation.
    """
    generator = snapshot.ranker.generator
    if generator.nodes is None or generator.network.decoder is None:
        return Walk([], [])
    trie = generator.network.catalogue.trie
    scorer = CachedScorer(generator.network.decoder, _memory(snapshot, requests), generator.nodes)
    available = ~snapshot.removed
    available[snapshot.known_indices(blocked)] = False
    if exclude_seen:
        available[requests.items] = False
    in_trie = torch.from_numpy(available[: trie.n_items])  # it may lack the newest items
    allowed = None if available.all() else trie.restrict(in_trie.to(trie.node_code.device))
    search = beam_search(trie, scorer, 1, width, allowed)
    best, scores = search.leaves[0].cpu(), search.scores[0].cpu()
    live = best >= 0
    levels = [best[live]]
    for _ in range(trie.depth - 1):
        levels.append(snapshot.catalogue.trie.node_parent[levels[-1]])
    nodes = [_nodes(snapshot, level) for level in levels[::-1]]
    leaves = zip(levels[0].tolist(), scores[live].tolist(), strict=True)
    return Walk(nodes, [WalkLeaf(leaf, score, _leaf_items(snapshot, leaf, available)) for leaf, score in leaves])


def _leaf_items(snapshot: CatalogueSnapshot, leaf: int, allowed: np.ndarray) -> list[WalkItem]:
    return [
        WalkItem(snapshot.item_ids[item], snapshot.titles[item])
        for item in _items_below(snapshot, leaf)
        if allowed[item]
    ]


def _items_below(snapshot: CatalogueSnapshot, node: int, limit: int | None = None) -> list[int]:
    trie = snapshot.catalogue.trie
    start, count = int(trie.node_item_start[node]), int(trie.node_item_count[node])
    return trie.leaf_items[start : start + (count if limit is None else min(count, limit))].tolist()


def _nodes(snapshot: CatalogueSnapshot, nodes: Tensor) -> list[WalkNode]:
    """Each node once, in order of its best leaf."""
    trie = snapshot.catalogue.trie
    distinct = torch.tensor([node for node in dict.fromkeys(nodes.tolist()) if node >= 0], dtype=torch.long)
    columns = (distinct, trie.node_parent[distinct], trie.node_code[distinct], trie.node_item_count[distinct])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [WalkNode(node, parent, code, items, _node_keywords(snapshot, node)) for node, parent, code, items in rows]


def _node_keywords(snapshot: CatalogueSnapshot, node: int, items: int = 40, most: int = 3) -> list[str]:
    """The keywords that most of the first items below a node have; at least two items must share one."""
    below = _items_below(snapshot, node, items)
    counts = Counter(
        keyword for item in below for keyword in {word for word, _ in snapshot.ids.keywords_of(snapshot.item_ids[item])}
    )
    needed = 1 if len(below) == 1 else 2
    return [keyword for keyword, count in counts.most_common(most) if count >= needed]
