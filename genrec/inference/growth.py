"""A network and its candidate features over a changed catalogue: nothing is trained, every weight is shared.

What training alone could have given a new item (its id vector, its co-occurrences, its popularity) is absent, as for
any cold item.
"""

from __future__ import annotations

import copy

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.growing import append_rows
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import CatalogueTrie
from genrec.model.network import GenerativeRecommender
from genrec.ranking.features import CandidateFeatures
from genrec.ranking.item_facts import ItemFacts


def refreshed(old: CandidateFeatures, table: pl.DataFrame, ids: SemanticIds) -> CandidateFeatures:
    """The features over items whose columns changed; counts stay."""
    refreshed = copy.copy(old)
    refreshed.facts = ItemFacts.from_table(table, ids.catalogue.text.cpu().numpy())
    return refreshed


@torch.no_grad()
def grow(network: GenerativeRecommender, catalogue: Catalogue, new_trie: bool = True) -> GenerativeRecommender:
    """The network over a catalogue that begins with its own items and goes on with new ones.

    Every weight that does not belong to a code or a trie node is shared with ``network``. New items have no row of the
    id table, which counts as a zero vector; new nodes have a zero vector of their own, and codes that no trained item
    had a zero code vector. The scores of old items stay, except that probability now also goes to the new ones, or
    from removed ones to the others. ``new_trie`` false: the trie is that of ``network``.
    """
    clone = _shared(network, catalogue)
    if catalogue.n_items > network.catalogue.n_items:
        _grow_items(clone, network, clone.catalogue)
    if network.decoder is not None and new_trie:
        _fit_decoder(clone, network.catalogue.trie, clone.catalogue.trie)
    return clone.eval()


@torch.no_grad()
def with_text(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """The network over the same items with other text vectors; every weight is shared."""
    return _shared(network, catalogue).eval()


def with_decoder_of(
    network: GenerativeRecommender, catalogue: Catalogue, other: GenerativeRecommender
) -> GenerativeRecommender:
    """The network over the same items in another trie, with the code decoder of ``other``, which was grown to it."""
    clone = _shared(network, catalogue)
    clone.decoder = other.decoder
    return clone.eval()


def _shared(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """A copy of the modules that shares every tensor, over another catalogue."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    if network.decoder is not None:
        shared[id(network.decoder.departed)] = network.decoder.departed
    catalogue, device = catalogue.share(), network.catalogue.codes.device
    if catalogue.codes.device != device:
        catalogue = catalogue.to(device)
    return copy.deepcopy(network, shared | {id(network.catalogue): catalogue})


def _grow_items(clone: GenerativeRecommender, network: GenerativeRecommender, catalogue: Catalogue) -> None:
    encoder, old = clone.item_encoder, network.catalogue
    starts = encoder.code_rows[0] - old.codes[0]  # the code table's first row of each level
    rows = catalogue.codes[old.n_items :] + starts
    if encoder.codes is not None:
        n_rows = encoder.codes.num_embeddings
        sizes = torch.cat([starts[1:], starts.new_tensor([n_rows])]) - starts
        rows, missing = _code_rows(catalogue.codes[old.n_items :], starts, sizes, n_rows)
        if missing:
            encoder.codes = nn.EmbeddingBag.from_pretrained(_with_zeros(encoder.codes.weight, 1), mode="sum")
    encoder.code_rows = append_rows(encoder.code_rows, rows)


def _fit_decoder(clone: GenerativeRecommender, old: CatalogueTrie, new: CatalogueTrie) -> None:
    """Give the nodes of the ``new`` trie what the decoder knows of their codes and of them."""
    decoder = clone.decoder
    assert decoder is not None
    device, starts = decoder.code_row.device, decoder.code_start[:-1]
    level = torch.repeat_interleave(torch.arange(new.depth, device=device), new.level_start.diff()[1:])
    sizes = decoder.code_start.diff()
    rows, missing = _code_rows(new.node_code[1:], starts[level], sizes[level], decoder.codes.num_embeddings)
    decoder.code_row = torch.cat([decoder.code_row[:1], rows])
    decoder.codes = nn.Embedding.from_pretrained(_with_zeros(decoder.codes.weight, int(missing)))
    vectors, row = decoder.nodes.weight, decoder.node_row
    had = torch.arange(old.n_nodes, device=device) if decoder.own_nodes is None else decoder.own_nodes
    if row is None:
        decoder.nodes = nn.Embedding.from_pretrained(vectors.new_zeros(new.n_nodes, vectors.shape[1]))
        row = torch.arange(new.n_nodes, device=device)
    else:
        vectors = vectors[:-1]
        decoder.keep_read(new)
        assert decoder.node_row is not None
        row = torch.where(decoder.node_row < len(decoder.nodes.weight) - 1, decoder.node_row.long(), -1)
    target = F.pad(row, (0, 1), value=-1)[_new_numbers(old, new)[had]]
    stays = target >= 0
    decoder.nodes.weight[target[stays]] = vectors[stays]
    # A node that comes back, as with an item that is added again, gets its own vector back.
    gone, lost = had[~stays], vectors[~stays]
    departed = decoder.departed | dict(zip(_ways_up(old, gone), lost, strict=True))
    if departed:
        fresh = torch.ones(len(decoder.nodes.weight), dtype=torch.bool, device=device)
        fresh[target[stays]] = False
        nodes = ((row >= 0) & fresh[row.clamp(min=0)]).nonzero()[:, 0]
        for node, way in zip(nodes.tolist(), _ways_up(new, nodes), strict=True):
            if way in departed:
                decoder.nodes.weight[row[node]] = departed.pop(way)
    decoder.departed = departed


def _new_numbers(old: CatalogueTrie, new: CatalogueTrie) -> Tensor:
    """The node of ``new`` that each node of ``old`` became, ``new.n_nodes`` for those that left: (old n_nodes,)."""
    numbers = torch.full((old.n_nodes,), new.n_nodes, device=old.node_code.device)
    numbers[0] = 0
    both = old.held & new.held[: old.n_items]
    whole = bool(both.all())
    for depth in range(old.depth):
        before, after = old.item_path[:, depth], new.item_path[: old.n_items, depth]
        numbers[before if whole else before[both]] = after if whole else after[both]
    return numbers


def _ways_up(trie: CatalogueTrie, nodes: Tensor) -> list[tuple[int, ...]]:
    """The codes on the way from each of nodes (m,) up to the root, -1 behind it."""
    codes = []
    for _ in range(trie.depth):
        codes.append(trie.node_code[nodes])
        nodes = trie.node_parent[nodes].clamp(min=0)
    return list(map(tuple, torch.stack(codes, 1).tolist()))


def _code_rows(codes: Tensor, starts: Tensor, sizes: Tensor, zero_row: int) -> tuple[Tensor, bool]:
    """Rows of a code table, and whether some code has none: these point to ``zero_row``, just behind the table."""
    known = codes < sizes
    return torch.where(known, codes + starts, zero_row), not bool(known.all())


def _with_zeros(weight: Tensor, rows: int) -> Tensor:
    return torch.cat([weight.detach(), weight.new_zeros(rows, weight.shape[1])])
