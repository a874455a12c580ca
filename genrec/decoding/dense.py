"""Dense retrieval: the items with the highest dot products, by an exact blocked matrix product or by a FAISS index."""

from __future__ import annotations

from typing import Protocol

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.decoding.beam import sort_keys
from genrec.errors import UserError

KINDS = ("exact", "flat", "ivf", "hnsw")
GROUP = 32  # items whose maximum is looked at first
CACHED = 1 << 18  # scores that are made at once on the CPU: they are read again before they leave its cache


class DenseIndex(Protocol):
    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Items of queries (B, dim): ids (B, k) int64 and scores (B, k) float32, best first; -1 and -inf where there is none.

        ``hidden`` (B, n_items) bool leaves items out.
        """


def dense_index(kind: str, vectors: Tensor) -> DenseIndex:
    """An index of ``kind`` (exact, flat, ivf, hnsw) over item vectors (n_items, dim). ``UserError`` for another kind or no items."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(f"dense index: vectors have shape {tuple(vectors.shape)}; expected (n_items, dim) with at least one item")
    if kind not in KINDS:
        raise UserError(f"decoding.index: '{kind}' is not one of {', '.join(KINDS)}")
    return ExactIndex(vectors) if kind == "exact" else FaissIndex(kind, vectors)


class ExactIndex:
    """Blocks of the item matrix times the queries, on the device of the vectors; equal scores go to the lower id.

    ``block`` items at a time; by default as many as make 16 million scores.
    """

    def __init__(self, vectors: Tensor, block: int | None = None):
        self.vectors, self.block = vectors, block

    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = _checked_k(k, len(self.vectors))
        ids = scores = None
        size = self.block or max((1 << 24) // max(len(queries), 1), 4096)
        for start in range(0, len(self.vectors), size):
            items = self.vectors[start : start + size]
            place, best = self._block_top(queries, items, min(k, len(items)), None if hidden is None else hidden[:, start : start + size])
            place = place + start
            if ids is not None:  # earlier blocks come first: their ids are lower, and so are their lanes
                place, best = torch.cat([ids, place], dim=1), torch.cat([scores, best], dim=1)
            choice = sort_keys(best, place).topk(min(k, best.shape[1]), dim=1).indices
            ids, scores = place.gather(1, choice), best.gather(1, choice)
        return ids.masked_fill(scores.isneginf(), -1), scores

    def _block_top(self, queries: Tensor, items: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places in the block and scores of its k best for each query."""
        if items.is_cuda or len(items) < 4 * GROUP * k:
            scores = (queries @ items.T).float()
            return top_k(scores if hidden is None else scores.masked_fill(hidden, -torch.inf), k)
        # A few groups' scores at a time stay in the cache until their maxima are taken.
        batch, count = len(queries), -(-len(items) // GROUP)
        scores = queries.new_full((batch, count * GROUP), -torch.inf, dtype=torch.float32)
        highest = scores.new_empty(batch, count)
        step = max(CACHED // max(batch * GROUP, 1), 1) * GROUP
        for start in range(0, len(items), step):
            part = scores[:, start : min(start + step, len(items))]
            part.copy_(queries @ items[start : start + step].T)
            if hidden is not None:
                part.masked_fill_(hidden[:, start : start + step], -torch.inf)
            groups = slice(start // GROUP, -(-(start + part.shape[1]) // GROUP))
            torch.amax(scores[:, groups.start * GROUP : groups.stop * GROUP].unflatten(1, (-1, GROUP)), -1, out=highest[:, groups])
        return top_of_groups(scores.view(batch, count, GROUP), highest, k)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places and values of the k best of scores (B, N), equal ones to the lower place."""
    batch, lanes = scores.shape
    if lanes >= 4 * GROUP * k:
        groups = F.pad(scores, (0, -lanes % GROUP), value=-torch.inf).view(batch, -1, GROUP)
        return top_of_groups(groups, groups.amax(-1), k)
    place = _best_places(scores, torch.arange(lanes, device=scores.device).expand(batch, -1), k)
    return place, scores.gather(1, place)


def top_of_groups(groups: Tensor, highest: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of groups (B, G, GROUP) whose maxima are ``highest`` (B, G): places (lanes in a row) and values, equal ones to the lower place.

    The k best lie in the k groups with the highest maxima (equal maxima: the lower group), so the rest is never ranked.
    """
    batch, count, width = groups.shape
    group = _best_places(highest, torch.arange(count, device=groups.device).expand(batch, -1), k)
    near = groups.gather(1, group[..., None].expand(-1, -1, width)).flatten(1)
    place = (group[..., None] * width + torch.arange(width, device=groups.device)).flatten(1)
    choice = _best_places(near, place, k)
    return place.gather(1, choice), near.gather(1, choice)


def _best_places(scores: Tensor, ids: Tensor, k: int) -> Tensor:
    """Lanes (B, k) of the best scores (B, N) in order, equal ones to the lower of ``ids`` (B, N).

    On the CPU the plain top-k is fastest; it leaves open which of equal scores it takes, so where that matters, and on a GPU, which should not
    wait to be asked, scores and ids are ranked as one number.
    """
    if not scores.is_cuda and scores.shape[1] > k:
        best, lane = scores.topk(k + 1, dim=1)
        if not bool(((best[:, k] == best[:, k - 1]) & best[:, k].isfinite()).any()):
            best, lane = best[:, :k], lane[:, :k]
            return lane.gather(1, sort_keys(best, ids.gather(1, lane)).argsort(dim=1, descending=True))
    return sort_keys(scores, ids).topk(k, dim=1).indices


class FaissIndex:
    """FAISS over inner products. Flat is exact; IVF looks at 1 list in 8, at least 8; HNSW has 32 links and a search width of 4 k."""

    def __init__(self, kind: str, vectors: Tensor):
        table = np.ascontiguousarray(vectors.detach().float().cpu().numpy())
        n_items, dim = table.shape
        self.n_items, self.kind, self.device = n_items, kind, vectors.device
        if kind == "flat":
            self.index = faiss.IndexFlatIP(dim)
        elif kind == "ivf":
            lists = max(1, min(int(4 * n_items**0.5), n_items // 39))  # FAISS wants 39 training points a list
            self.quantizer = faiss.IndexFlatIP(dim)
            self.index = faiss.IndexIVFFlat(self.quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
            self.index.train(table)
            self.index.nprobe = max(8, lists // 8)
        else:
            self.index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        self.index.add(table)

    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = _checked_k(k, self.n_items)
        # What is hidden is fetched too and dropped behind, so that k remain.
        fetched = k if hidden is None else min(k + int(hidden.sum(1).max()), self.n_items)
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(4 * fetched, 64)
        found, near = self.index.search(np.ascontiguousarray(queries.detach().float().cpu().numpy()), fetched)
        ids, scores = torch.from_numpy(near).to(self.device), torch.from_numpy(found).to(self.device)
        gone = ids < 0
        if hidden is not None:
            gone |= hidden.gather(1, ids.clamp(min=0))
        scores = scores.masked_fill(gone, -torch.inf)
        choice = sort_keys(scores, ids.clamp(min=0)).topk(k, dim=1).indices
        scores = scores.gather(1, choice)
        return ids.gather(1, choice).masked_fill(scores.isneginf(), -1), scores


def _checked_k(k: int, n_items: int) -> int:
    if k < 1:
        raise UserError(f"dense index: k is {k}; expected at least 1")
    return min(k, n_items)
