"""A network and its candidate features over a changed catalogue: nothing is trained, every weight is shared.

What training alone could have given a new item (its id vector, its co-occurrences, its popularity) is absent, as for
any cold item.
"""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import CatalogueTrie
from genrec.model.network import GenerativeRecommender
from genrec.ranking.features import CandidateFeatures, ItemFacts


def grown_features(old: CandidateFeatures, table: pl.DataFrame, ids: SemanticIds) -> CandidateFeatures:
    """The features over a changed item table: nothing was counted of new items, but their columns are known."""
    counted = copy.copy(old.cooccurrence)
    counted.similar, counted.following = (widen(matrix, len(table)) for matrix in (counted.similar, counted.following))
    # An event's key is item x (span + 1) + seconds, so new items behind the old ones change no key.
    query_items = old.query_items.widen(len(table)) if old.query_items else None
    facts = ItemFacts.from_table(table, ids.catalogue.text.cpu().numpy())
    return CandidateFeatures(counted, facts, old.keys, old.origin, old.span, query_items)


def widen(matrix: sp.csr_matrix | None, n: int) -> sp.csr_matrix:
    """A square sparse matrix with empty rows and columns behind its own; the values are shared, not copied."""
    assert matrix is not None
    indptr = np.concatenate([matrix.indptr, np.full(n - matrix.shape[0], matrix.indptr[-1], matrix.indptr.dtype)])
    return sp.csr_matrix((matrix.data, matrix.indices, indptr), shape=(n, n))


@torch.no_grad()
def grow(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """The network over a catalogue that begins with its own items and goes on with new ones.

    Every weight that does not belong to an item, a code or a trie node is shared with ``network``. New items have a
    zero id vector, new nodes a zero vector of their own, and codes that no trained item had a zero code vector. The
    scores of old items stay, except that probability now also goes to the new ones.
    """
    clone = _shared(network, catalogue)
    _grow_items(clone, network, clone.catalogue)
    if network.decoder is not None:
        _grow_decoder(clone, network.catalogue.trie, clone.catalogue.trie)
    return clone.eval()


@torch.no_grad()
def with_text(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """The network over the same items with other text vectors; every weight is shared."""
    return _shared(network, catalogue).eval()


def _shared(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """A copy of the modules that shares every tensor, over another catalogue."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    catalogue = catalogue.share().to(network.catalogue.codes.device)
    return copy.deepcopy(network, shared | {id(network.catalogue): catalogue})


def _grow_items(clone: GenerativeRecommender, network: GenerativeRecommender, catalogue: Catalogue) -> None:
    encoder, old = clone.item_encoder, network.catalogue
    starts = encoder.code_rows[0] - old.codes[0]  # the code table's first row of each level
    if encoder.codes is not None:
        sizes = torch.cat([starts[1:], starts.new_tensor([encoder.codes.num_embeddings])]) - starts
        rows, missing = _code_rows(catalogue.codes, starts, sizes, encoder.codes.num_embeddings)
        encoder.codes = nn.EmbeddingBag.from_pretrained(_with_zeros(encoder.codes.weight, int(missing)), mode="sum")
        encoder.code_rows = rows
    if clone.anchor_tables is not None:
        clone.anchor_tables.grow(catalogue.n_items)
    if encoder.ids is not None:
        encoder.ids = nn.Embedding.from_pretrained(_with_zeros(encoder.ids.weight, catalogue.n_items - old.n_items))


def _grow_decoder(clone: GenerativeRecommender, old: CatalogueTrie, new: CatalogueTrie) -> None:
    decoder = clone.decoder
    assert decoder is not None
    device = decoder.code_row.device
    first = old.item_path[0]  # a trained item's nodes: each has a row of the code table
    starts = decoder.code_row[first] - old.node_code[first]
    sizes = torch.cat([starts[1:], decoder.code_row[:1]]) - starts  # the root's row comes right after the last level
    level = torch.repeat_interleave(torch.arange(new.depth, device=device), new.level_start.diff()[1:])
    rows, missing = _code_rows(new.node_code[1:], starts[level], sizes[level], decoder.codes.num_embeddings)
    decoder.code_row = torch.cat([decoder.code_row[:1], rows])
    decoder.codes = nn.Embedding.from_pretrained(_with_zeros(decoder.codes.weight, int(missing)))
    if decoder.nodes is not None:
        weight = decoder.nodes.weight.new_zeros(new.n_nodes, decoder.nodes.weight.shape[1])
        weight[0] = decoder.nodes.weight[0]
        weight[new.item_path[: old.n_items].flatten()] = decoder.nodes.weight[old.item_path.flatten()]
        decoder.nodes = nn.Embedding.from_pretrained(weight)


def _code_rows(codes: Tensor, starts: Tensor, sizes: Tensor, zero_row: int) -> tuple[Tensor, bool]:
    """Rows of a code table, and whether some code has none: these point to ``zero_row``, just behind the table."""
    known = codes < sizes
    return torch.where(known, codes + starts, zero_row), not bool(known.all())


def _with_zeros(weight: Tensor, rows: int) -> Tensor:
    return torch.cat([weight.detach(), weight.new_zeros(rows, weight.shape[1])])
