"""Dense retrieval: the items with the highest dot products, by an exact blocked matrix product or by a FAISS index."""

from __future__ import annotations

from typing import Protocol

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.errors import UserError
from genrec.processor import bfloat16_hardware
from genrec.retrieval.rough import RoughScores, ragged
from genrec.retrieval.top_k import sort_keys

KINDS = ("exact", "flat", "ivf", "hnsw")
GROUP = 32  # items whose maximum is looked at first
FEW = 4  # queries up to which FAISS's loop over the vectors is faster than a matrix product
ROUGH_ITEMS = 1 << 14  # a smaller catalogue is soon multiplied exactly
ROUGH_CHUNK = 1 << 23  # scores of a block in bfloat16
PIECE = 1 << 11  # vectors whose exact products are taken at a time
CHUNK = (
    1 << 22
)  # scores of a block on the CPU: larger ones would come from fresh pages each time, and filling these costs more than the product


class DenseIndex(Protocol):
    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Items of queries (B, dim): ids (B, k) int64 and scores (B, k) float32, best first; -1 and -inf where there is none.

        ``hidden`` (B, n_items) bool leaves items out.
        """


def dense_index(kind: str, vectors: Tensor) -> DenseIndex:
    """An index of ``kind`` (exact, flat, ivf, hnsw) over item vectors (n_items, dim). ``UserError`` for another kind or no items."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"dense index: vectors have shape {tuple(vectors.shape)}; expected (n_items, dim) with at least one item"
        )
    if kind not in KINDS:
        raise UserError(f"decoding.index: '{kind}' is not one of {', '.join(KINDS)}")
    return ExactIndex(vectors) if kind == "exact" else FaissIndex(kind, vectors)


class ExactIndex:
    """The exact answer on the device of the vectors; equal scores go to the lower id.

    On a CPU a few queries go to FAISS's own loop over the vectors; many to products in bfloat16 that only settle which items need an exact
    look, where the processor multiplies that in hardware; everything else to blocks of the item matrix times the queries, ``block`` items at
    a time: by default few at first, then as many as make 4 million scores on the CPU, 16 million on a GPU.
    """

    def __init__(self, vectors: Tensor, block: int | None = None):
        self.vectors, self.block = vectors.detach(), block
        plain = vectors.device.type == "cpu" and vectors.dtype == torch.float32 and block is None
        self.few = FEW if plain else 0
        self.rough = (
            RoughScores(self.vectors) if plain and len(vectors) >= ROUGH_ITEMS and bfloat16_hardware() else None
        )

    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = _checked_k(k, len(self.vectors))
        found = None
        plain = len(queries) > 0 and queries.dtype == torch.float32
        if plain and len(queries) <= self.few:
            found = self._one_by_one(queries.detach(), k, hidden)
        elif plain and self.rough is not None:
            found = self._second_look(queries.detach(), k, hidden)
        return self._blocks(queries, k, hidden) if found is None else found

    def _one_by_one(self, queries: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """None where what is hidden or equal scores at the end need a look at more."""
        fetched = min(k + 1 + (0 if hidden is None else int(hidden.sum(1).max())), len(self.vectors))
        if fetched > 4 * k + 16:
            return None
        scores, ids = faiss.knn(
            queries.contiguous().numpy(), self.vectors.contiguous().numpy(), fetched, metric=faiss.METRIC_INNER_PRODUCT
        )
        ids, scores = torch.from_numpy(ids), torch.from_numpy(scores)
        last = scores[:, -1:]
        ids, best = _best(ids, _visible(ids, scores, hidden), k)
        # FAISS leaves open which of equal scores it returns.
        if fetched < len(self.vectors) and bool((best[:, -1:] <= last).any()):
            return None
        return ids, best

    def _second_look(self, queries: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        row, ids = self.rough.possible(queries, k, hidden, max(ROUGH_CHUNK // len(queries), GROUP * 128))
        # In pieces that stay in cache; each sum runs in the same order, so equal vectors have equal scores.
        pieces = zip(row.split(PIECE), ids.split(PIECE), strict=True)
        exact = [
            self.vectors.index_select(0, item).mul_(queries.index_select(0, owner)).sum(-1) for owner, item in pieces
        ]
        ids, scores = ragged(row, len(queries), ids, torch.cat(exact) if exact else queries.new_empty(0))
        if ids.shape[1] < k:
            ids, scores = F.pad(ids, (0, k - ids.shape[1])), F.pad(scores, (0, k - scores.shape[1]), value=-torch.inf)
        return _best(ids, scores, k)

    def _blocks(self, queries: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        n_items = len(self.vectors)
        ids = torch.empty(len(queries), 0, dtype=torch.long, device=self.vectors.device)
        best = torch.empty(len(queries), 0, device=self.vectors.device)
        start = 0
        while start < n_items:
            stop = min(start + self._size(len(queries), start, k), n_items)
            scores = (queries @ self.vectors[start:stop].T).float()
            if hidden is not None:
                scores = scores.masked_fill(hidden[:, start:stop], -torch.inf)
            if scores.device.type != "cpu" or best.shape[1] < k:
                place, found = top_k(scores, min(k, scores.shape[1]))
            else:
                place, found = _above(scores, best[:, -1:])
            ids, best = torch.cat([ids, place + start], dim=1), torch.cat([best, found], dim=1)
            choice = _best_places(best, ids, min(k, best.shape[1]), stop == n_items)
            ids, best, start = ids.gather(1, choice), best.gather(1, choice), stop
        return ids.masked_fill(best.isneginf(), -1), best

    def _size(self, batch: int, start: int, k: int) -> int:
        """Items of the block that begins at ``start``. The first block of the CPU is ranked whole, the others only where they can matter."""
        if self.block:
            return self.block
        if self.vectors.device.type != "cpu":
            return max((1 << 24) // max(batch, 1), 4096)
        return max(CHUNK // max(batch, 1), GROUP * 128) if start else max(4096, 8 * k)


def _above(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values (B, M) of what lies above ``floor`` (B, 1) in scores (B, N), -inf behind it.

    Only groups whose maximum is above it are looked into. They are strided, so that the maxima are taken lane by lane.
    """
    batch, lanes = scores.shape
    width = lanes // GROUP
    groups = scores[:, : width * GROUP].unflatten(1, (GROUP, width)) if width else scores[:, :0].view(batch, GROUP, 0)
    row, group = (
        torch.nonzero(groups.amax(1) > floor, as_tuple=True) if width else 2 * [torch.zeros(0, dtype=torch.long)]
    )
    near = groups[row, :, group]
    pair, lane = torch.nonzero(near > floor[row], as_tuple=True)
    rest_row, rest = torch.nonzero(scores[:, width * GROUP :] > floor, as_tuple=True)
    row = torch.cat([row[pair], rest_row])
    place = torch.cat([lane * width + group[pair], rest + width * GROUP])
    value = torch.cat([near[pair, lane], scores[rest_row, width * GROUP + rest]])
    if len(rest_row):
        order = row.argsort(stable=True)
        row, place, value = row[order], place[order], value[order]
    return ragged(row, batch, place, value)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places and values of the k best of scores (B, N), equal ones to the lower place.

    On a GPU the k best are taken from the k groups with the highest maxima (equal maxima: the lower group), so that the rest is never ranked.
    """
    batch, lanes = scores.shape
    place = torch.arange(lanes, device=scores.device).expand(batch, -1)
    if scores.device.type != "cpu" and lanes >= 4 * GROUP * k:
        groups = F.pad(scores, (0, -lanes % GROUP), value=-torch.inf).view(batch, -1, GROUP)
        highest = groups.amax(-1)
        group = _best_places(highest, place[:, : highest.shape[1]], k)
        scores = groups.gather(1, group[..., None].expand(-1, -1, GROUP)).flatten(1)
        place = (group[..., None] * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
    choice = _best_places(scores, place, k)
    return place.gather(1, choice), scores.gather(1, choice)


def _best_places(scores: Tensor, ids: Tensor, k: int, in_order: bool = True) -> Tensor:
    """Lanes (B, k) of the best scores (B, N), equal ones to the lower of ``ids`` (B, N), in that order; without ``in_order`` only by score.

    On the CPU the plain top-k is fastest; it leaves open which of equal scores it takes, so where that matters, and on a GPU, which should not
    wait to be asked, scores and ids are ranked as one number.
    """
    if scores.device.type == "cpu" and scores.shape[1] > k:
        best, lane = scores.topk(k + 1, dim=1)
        if not bool(((best[:, k] == best[:, k - 1]) & best[:, k].isfinite()).any()):
            best, lane = best[:, :k], lane[:, :k]
            if not in_order:
                return lane
            return lane.gather(1, sort_keys(best, ids.gather(1, lane)).argsort(dim=1, descending=True))
    return sort_keys(scores, ids).topk(k, dim=1).indices


class FaissIndex:
    """FAISS over inner products. Flat is exact; HNSW has 32 links and a search width of 2 k; IVF looks into as many lists as a sample of its
    own vectors needs to find 99 % of its nearest 100. Requests that are unlike any item may find less.
    """

    def __init__(self, kind: str, vectors: Tensor):
        table = np.ascontiguousarray(vectors.detach().float().cpu().numpy())
        n_items, dim = table.shape
        self.n_items, self.dim, self.kind, self.device, self.on_cpu = (
            n_items,
            dim,
            kind,
            vectors.device,
            vectors.device.type == "cpu",
        )
        if kind == "flat":
            self.index = faiss.IndexFlatIP(dim)
        elif kind == "ivf":
            lists = max(1, min(int(4 * n_items**0.5), n_items // 39))  # FAISS wants 39 training points a list
            self.quantizer = faiss.IndexFlatIP(dim)
            self.index = faiss.IndexIVFFlat(self.quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
            self.index.train(table)
        else:
            self.index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        self.index.add(table)
        if kind == "ivf":
            self._calibrate(table)

    def _calibrate(self, table: np.ndarray) -> None:
        sample = table[np.random.default_rng(0).choice(len(table), min(64, len(table)), replace=False)]
        k = min(100, len(table))
        truth = np.argpartition(-(sample @ table.T), k - 1, axis=1)[:, :k]
        for lists in (2**power for power in range(self.index.nlist.bit_length() + 1)):
            self.index.nprobe = min(lists, self.index.nlist)
            found = self.index.search(sample, k)[1]
            if np.mean([np.isin(*pair).mean() for pair in zip(truth, found, strict=True)]) >= 0.99:
                break

    def search(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = _checked_k(k, self.n_items)
        # What is hidden is fetched too and dropped behind, so that k remain.
        fetched = k if hidden is None else min(k + int(hidden.sum(1).max()), self.n_items)
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(2 * fetched, 64)
        found, near = self._nearest(queries, fetched)
        ids, scores = torch.from_numpy(near), torch.from_numpy(found)
        if not self.on_cpu:
            ids, scores = ids.to(self.device), scores.to(self.device)
        whole = near.item(-1) >= 0 if near.size == fetched else near[:, -1].min(initial=0) >= 0
        if hidden is None and whole and (self.kind != "flat" or (found[:, 1:] < found[:, :-1]).all()):
            return ids, scores  # as wanted: nothing missing, and where the index is exact, no two scores equal
        return _best(ids, _visible(ids, scores, hidden), k)

    def _nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What ``index.search`` gives, without its checks: for one query these take a tenth of the time."""
        count, dim = queries.shape
        if dim != self.dim:
            raise UserError(f"dense index: queries of {dim} dimensions; the items have {self.dim}")
        if queries.dtype != torch.float32 or queries.device.type != "cpu" or not queries.is_contiguous():
            queries = queries.detach().float().cpu().contiguous()
        found, near = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        start = faiss.cast_integer_to_float_ptr(queries.data_ptr())
        self.index.search_c(count, start, k, faiss.swig_ptr(found), faiss.swig_ptr(near))
        return found, near


def _visible(ids: Tensor, scores: Tensor, hidden: Tensor | None) -> Tensor:
    """The scores (B, N) of ids (B, N), -inf where there is none (-1) or it is ``hidden`` (B, n_items)."""
    gone = ids < 0
    if hidden is not None:
        gone |= hidden.gather(1, ids.clamp(min=0))
    return scores.masked_fill(gone, -torch.inf)


def _best(ids: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of ids and scores (B, N), equal ones by the lower id: (B, k) each, -1 where the score is -inf."""
    order = sort_keys(scores, ids.clamp(min=0)).topk(k, dim=1).indices
    scores = scores.gather(1, order)
    return ids.gather(1, order).masked_fill(scores.isneginf(), -1), scores


def _checked_k(k: int, n_items: int) -> int:
    if k < 1:
        raise UserError(f"dense index: k is {k}; expected at least 1")
    return min(k, n_items)
