"""Why an item: what in the history is near it, which words it shares with the query, what each source said, and its way through the code tree."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.data.dataset import Requests
from genrec.generation.beam import beam_search
from genrec.generation.options import SearchOptions
from genrec.generation.scorers import CachedScorer
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.model.code_decoder import Memory
from genrec.objectives.generation import path_log_probabilities
from genrec.ranking.features import FEATURES
from genrec.retrieval.allowed import AllowedItems
from genrec.text.encoder import TOKEN_PATTERN, item_texts

NEIGHBOURS = 5
INTERACTIONS = "interactions"


@dataclass(frozen=True)
class Neighbour:
    """A history item: cosine of its vector and the explained item's, and how strongly training users had both (0: never)."""

    item_id: str
    title: str | None
    similarity: float
    cooccurrence: float


@dataclass(frozen=True)
class Step:
    """One step down the code tree: the code taken, its probability among the children that exist, how many these are, the items below."""

    code: int
    probability: float | None
    choices: int
    items: int


@dataclass(frozen=True)
class Keyword:
    """A core keyword of the item, of one of 18 attribute types; the keywords shape its codes. ``asked``: the query has it too."""

    keyword: str
    type: str
    asked: bool


@dataclass(frozen=True)
class ScoreDetail:
    """One source's value for the item, and what it added to the fused score."""

    value: float
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Why an item would be shown.

    ``evidence`` by feature of ``genrec.ranking.features.FEATURES``, and "interactions": what the fusion's network sees in them together.
    The contributions add up to ``score``. ``path`` probabilities are None for a model without generation.
    """

    item_id: str
    title: str | None
    neighbours: list[Neighbour]
    words: list[str]
    keywords: list[Keyword]
    path: list[Step]
    evidence: dict[str, ScoreDetail]
    score: float


@dataclass(frozen=True)
class WalkNode:
    """A tree node the beam stood on: its id, its parent's, its code, and how many items are below it."""

    node: int
    parent: int
    code: int
    items: int


@dataclass(frozen=True)
class Walk:
    """Levels of the beam from the tree's first to its leaves, best lanes first; ``leaves``: items of the last level with their log-probability."""

    levels: list[list[WalkNode]]
    leaves: list[dict]


@torch.inference_mode()
def explain(snapshot: CatalogueSnapshot, requests: Requests, item_id: str) -> Explanation:
    """Explain one item for one request. ``UserError`` for an unknown item."""
    place = int(snapshot.places([item_id])[0])
    score, evidence = _evidence(snapshot, requests, place)
    query = requests.query_texts[requests.request_queries[0]] if requests.request_queries[0] >= 0 else ""
    return Explanation(
        item_id, snapshot.titles[place], _neighbours(snapshot, requests.items, place), _shared_words(snapshot, query, place),
        _keywords(snapshot, query, place), _path(snapshot, requests, place), evidence, score,
    )  # fmt: skip


def _neighbours(snapshot: CatalogueSnapshot, history: np.ndarray, place: int) -> list[Neighbour]:
    """The history items nearest to an item, strongest first: by cosine and co-occurrence, each scaled to its greatest."""
    generator = snapshot.ranker.generator
    seen = np.unique(history[history != place])
    if not len(seen):
        return []
    vectors = F.normalize(generator.items, dim=-1)
    similarity = (vectors[torch.from_numpy(seen.astype(np.int64)).to(vectors.device)] @ vectors[place]).cpu().numpy()
    table = generator.evidence.cooccurrence
    together = np.asarray((table.similar[seen, place] + table.following[seen, place]).todense()).ravel()
    order = np.argsort(
        -(similarity / max(np.abs(similarity).max(), 1e-9) + together / max(together.max(), 1e-9)), kind="stable"
    )[:NEIGHBOURS]
    return [
        Neighbour(snapshot.item_ids[seen[n]], snapshot.titles[seen[n]], float(similarity[n]), float(together[n]))
        for n in order
    ]


def _shared_words(snapshot: CatalogueSnapshot, query: str, place: int) -> list[str]:
    """Words of the query that the item's own text has, in the query's order."""
    own = set(re.findall(TOKEN_PATTERN, item_texts(snapshot.table[place])[0].lower()))
    return [word for word in dict.fromkeys(re.findall(TOKEN_PATTERN, query.lower())) if word in own]


def _keywords(snapshot: CatalogueSnapshot, query: str, place: int) -> list[Keyword]:
    """The item's keywords, those that the query has too first. None where keywords are off."""
    words, item_id = snapshot.ids.words, snapshot.item_ids[place]
    if words.keywords is None:
        return []
    own = snapshot.ids.keywords_of(item_id)
    if not own:  # added after the semantic IDs were fitted, or without a keyword
        row = snapshot.table[place]
        own = list(
            words.keywords.shown(words.keywords.of_items(row), row["item_id"]).select("keyword", "type").iter_rows()
        )
    asked = set(words.keywords.shown(words.keywords.of_texts([query]), pl.Series("query", [query]))["keyword"])
    return sorted((Keyword(keyword, kind, keyword in asked) for keyword, kind in own), key=lambda one: not one.asked)


def _evidence(snapshot: CatalogueSnapshot, requests: Requests, place: int) -> tuple[float, dict[str, ScoreDetail]]:
    """The item's fused score and what it is made of, among the candidates of the request's own list; alone where it was not proposed."""
    search = bool(requests.request_queries[0] >= 0)
    reranker = snapshot.ranker.rerankers["search" if search else "recommendation"]
    options = SearchOptions(exclude_seen=not search, allowed=AllowedItems(mask=torch.from_numpy(~snapshot.removed)))
    _, _, found = next(snapshot.ranker.candidates(requests, options))
    if not bool((found.ids == place).any()):
        alone = SearchOptions(exclude_seen=False, allowed=AllowedItems(only=torch.tensor([[place]])))
        _, _, found = next(snapshot.ranker.candidates(requests, alone))
    evidence = found.evidence[0, found.ids[0] == place][0]
    parts, together = reranker.contributions(evidence)
    result = {
        name: ScoreDetail(value, part)
        for name, value, part in zip(FEATURES, evidence.tolist(), parts.tolist(), strict=True)
    }
    if together is not None:
        result[INTERACTIONS] = ScoreDetail(float(together), float(together))
    return float(reranker.scores(evidence)), result


def _memory(snapshot: CatalogueSnapshot, requests: Requests) -> Memory:
    generator = snapshot.ranker.generator
    batch = snapshot.ranker.collator(requests.query_texts).requests(requests).to(generator.items.device)
    return generator.network.decoder_memory(generator.network.encode(batch, generator.items))


def _path(snapshot: CatalogueSnapshot, requests: Requests, place: int) -> list[Step]:
    generator = snapshot.ranker.generator
    trie, decoder = snapshot.catalogue.trie, generator.network.decoder
    nodes = trie.item_path[place]
    parents = torch.cat([nodes.new_zeros(1), nodes[:-1]])
    chances: list[float | None] = [None] * trie.depth
    if decoder is not None:
        memory = _memory(snapshot, requests)
        states, _ = decoder.hidden(memory, generator.nodes, parents[None, None])
        scale = decoder.log_scale.exp()
        steps = path_log_probabilities(
            states.flatten(0, 1), scale, generator.nodes, trie, nodes[None], copy_bias=memory.copy_bias
        )
        chances = steps[0].exp().tolist()
    columns = (trie.node_code[nodes], trie.child_count[parents], trie.node_item_count[nodes])
    return [
        Step(code, chance, choices, items)
        for chance, code, choices, items in zip(chances, *(column.tolist() for column in columns), strict=True)
    ]


@torch.inference_mode()
def walk(snapshot: CatalogueSnapshot, requests: Requests, width: int) -> Walk:
    """The beam search of one request: the leaves it ends at and the nodes on the way to them, level by level.

    Removed items are not walked to. Empty for a model without generation.
    """
    generator = snapshot.ranker.generator
    if generator.nodes is None:
        return Walk([], [])
    trie = snapshot.catalogue.trie
    scorer = CachedScorer(generator.network.decoder, _memory(snapshot, requests), generator.nodes)
    allowed = (
        trie.restrict(~torch.from_numpy(snapshot.removed).to(trie.node_code.device)) if snapshot.removed.any() else None
    )
    found = beam_search(trie, scorer, 1, width, allowed)
    leaves, scores = found.leaves, found.scores
    live = leaves[0] >= 0
    on_the_way = [leaves[0][live]]
    for _ in range(trie.depth - 1):
        on_the_way.append(trie.node_parent[on_the_way[-1]])
    levels = [_nodes(snapshot, _distinct(level)) for level in on_the_way[::-1]]
    found = []
    for leaf, score in zip(leaves[0][live].tolist(), scores[0][live].tolist(), strict=True):
        start = int(trie.node_item_start[leaf])
        items = [
            item
            for item in trie.leaf_items[start : start + int(trie.node_item_count[leaf])].tolist()
            if not snapshot.removed[item]
        ]
        found.append(
            {
                "node": leaf,
                "log_probability": score,
                "items": [{"item_id": snapshot.item_ids[n], "title": snapshot.titles[n]} for n in items],
            }
        )
    return Walk(levels, found)


def _distinct(nodes: Tensor) -> Tensor:
    """Each node once, in order of its best leaf."""
    return torch.tensor(list(dict.fromkeys(nodes.tolist())), dtype=torch.long)


def _nodes(snapshot: CatalogueSnapshot, nodes: Tensor) -> list[WalkNode]:
    trie = snapshot.catalogue.trie
    nodes = nodes[nodes >= 0]
    columns = (nodes, trie.node_parent[nodes], trie.node_code[nodes], trie.node_item_count[nodes])
    return [WalkNode(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
