"""Dense retrieval: the items with the highest dot products, by an exact blocked matrix product or by a FAISS index."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from genrec.errors import UserError
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.products import pair_products
from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.top_k import best, top_columns

KINDS = ("auto", "exact", "ivf", "hnsw")
# Numbers of a table of vectors that ``auto`` multiplies exactly: a single query reads all of them, some 10 ms.
EXACT_NUMBERS = 1 << 24
GROUP = 32  # columns whose maximum is compared first
# Scores of a block; a larger one on the CPU spends more on fresh pages than on the product.
BLOCK, GPU_BLOCK = 1 << 22, 1 << 24
POINTS, ADDED = 64, 1 << 16  # training points of an IVF list; vectors added to an index at once
WIDE = 128  # numbers of a vector of which an IVF keeps 6 bits each: as many of the nearest are found (texts of Beauty)
TAIL = 1 << 14  # added items that are multiplied exactly before an index takes them in


class DenseIndex(Protocol):
    """Nearest item vectors by inner product."""

    def nearest(self, queries: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """Ids (B, k) of the items with the highest products with queries (B, dim), -1 where none.

        ``mask`` (n_items,) bool restricts them.
        """
        ...


class DenseRetriever:
    """Retriever over item vectors (n_items, dim): an index proposes, exact dot products decide.

    ``queries`` reads the query vectors (B, dim) off the requests; a zero vector has no results. Each
    pair's score is summed in a fixed order: it does not depend on the batch, and equal vectors have equal scores.
    """

    def __init__(
        self,
        vectors: Tensor,
        queries: Callable[[RetrievalRequests], Tensor],
        kind: str = "auto",
        index: DenseIndex | None = None,
    ):
        """``index``: one that exists already; None builds one of ``kind``."""
        self.vectors, self.queries = vectors.detach(), queries
        self.index = dense_index(kind, vectors) if index is None else index
        self._subsets = WeakIdKeyDictionary()  # by mask, which requests share: the ids of its items

    @classmethod
    def open(
        cls, vectors: Tensor, queries: Callable[[RetrievalRequests], Tensor], kind: str, saved: Path | None
    ) -> DenseRetriever:
        """A retriever with the index that was ``saved`` for the same vectors, else with a new one of ``kind``."""
        index = None if saved is None or vectors.device.type != "cpu" else FaissIndex.load(saved, vectors)
        return cls(vectors, queries, kind, index)

    def grown(self, vectors: Tensor) -> DenseRetriever:
        """A retriever over ``vectors``, which begin with this one's; the index stays, and covers them all."""
        index = self.index
        if isinstance(index, ExactIndex):
            index = ExactIndex(vectors)
        elif isinstance(index, GrownIndex):
            index = index.grown(vectors)
        else:
            index = GrownIndex(index, len(self.vectors), vectors)
        return DenseRetriever(vectors, self.queries, index=index)

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """As ``Retriever.top``."""
        return self.search(self.queries(requests), k, allowed)

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``."""
        return pair_products(self.queries(requests), self.vectors, ids)

    def search(self, queries: Tensor, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """The best allowed items of queries (B, dim): ids and scores (B, k)."""
        if k < 1:
            raise UserError(f"dense retrieval: k is {k}; expected at least 1")
        k = min(k, len(self.vectors))
        if allowed.only is not None:
            ids = allowed.candidates
        else:  # excluded items are fetched too and dropped behind
            excluded = 0 if allowed.excluded is None else allowed.excluded.shape[1]
            ids = self._nearest(queries, min(k + excluded, len(self.vectors)), allowed.mask)
        scores = pair_products(queries, self.vectors, ids.clamp(min=0))
        kept = allowed.keep(ids) & (queries != 0).any(1, keepdim=True)
        return best(ids, scores.masked_fill(~kept, -torch.inf), k)

    def _nearest(self, queries: Tensor, k: int, mask: Tensor | None) -> Tensor:
        """The nearest items of a mask: by the index, or exactly where an index of all items would miss most of them."""
        if mask is None or isinstance(self.index, ExactIndex):
            return self.index.nearest(queries, k, mask)
        subset = self._subsets.get(mask)
        if subset is None:
            subset = self._subsets[mask] = mask.nonzero()[:, 0]
        if len(subset) * self.vectors.shape[1] > EXACT_NUMBERS // 4:
            return self.index.nearest(queries, k, mask)
        if not len(subset):
            return torch.full((len(queries), k), -1, device=queries.device)
        index = ExactIndex(self.vectors[subset].float()).nearest(queries, min(k, len(subset)))
        return torch.where(index >= 0, subset[index.clamp(min=0)], -1)


def dense_index(kind: str, vectors: Tensor) -> DenseIndex:
    """An index of ``kind`` over item vectors (n_items, dim).

    ``auto`` is exact on a GPU and up to ``EXACT_NUMBERS`` numbers, which is 262,144 items of 64, and IVF above.

    Raises ``UserError`` for another kind or no items.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"dense index: vectors have shape {tuple(vectors.shape)}; expected (n_items, dim) with at least one item"
        )
    if kind not in KINDS:
        raise UserError(f"decoding.index: '{kind}' is not one of {', '.join(KINDS)}")
    if kind == "auto":
        kind = "exact" if vectors.numel() <= EXACT_NUMBERS or vectors.device.type != "cpu" else "ivf"
    return ExactIndex(vectors) if kind == "exact" else FaissIndex(kind, vectors)


class ExactIndex:
    """The exact answer on the device of the vectors, block by block; equal scores go to the lower id."""

    def __init__(self, vectors: Tensor, block: int | None = None):
        """``block``: items of a block; None for as many as make ``BLOCK`` scores."""
        self.vectors, self.block = vectors.detach(), block

    def nearest(self, queries: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """As ``DenseIndex.nearest``."""
        n_items, batch = len(self.vectors), len(queries)
        ids = torch.empty(batch, 0, dtype=torch.long, device=self.vectors.device)
        scores = torch.empty(batch, 0, device=self.vectors.device)
        start = 0
        while start < n_items:
            stop = min(start + self._size(batch, start, k), n_items)
            products = (queries @ self.vectors[start:stop].to(queries.dtype).T).float()
            if mask is not None:
                products = products.masked_fill(~mask[start:stop], -torch.inf)
            if products.device.type != "cpu" or scores.shape[1] < k:
                columns = torch.arange(stop - start, device=products.device).expand(batch, -1)
                index = top_columns(products, columns, min(k, products.shape[1]))
                further = products.gather(1, index)
            else:
                index, further = _above(products, scores[:, -1:])
            ids, scores = torch.cat([ids, index + start], dim=1), torch.cat([scores, further], dim=1)
            choice = top_columns(scores, ids, min(k, scores.shape[1]))
            ids, scores, start = ids.gather(1, choice), scores.gather(1, choice), stop
        return ids.masked_fill(scores.isneginf(), -1)

    def _size(self, batch: int, start: int, k: int) -> int:
        """Items of the block that begins at ``start``.

        On a CPU the first block is ranked whole; of the others only items that can enter the result.
        """
        if self.block:
            return self.block
        if self.vectors.device.type == "cpu" and not start:
            return max(4096, 8 * k)
        return max((BLOCK if self.vectors.device.type == "cpu" else GPU_BLOCK) // max(batch, 1), GROUP * 128)


def _above(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and values (B, M) of the entries above ``floor`` (B, 1) in scores (B, N), 0 and -inf behind it.

    Only groups whose maximum is above it are searched. Groups are strided: maxima are taken column by column.
    """
    batch, columns = scores.shape
    width = columns // GROUP
    groups = scores[:, : width * GROUP].unflatten(1, (GROUP, width))
    row, group = torch.nonzero(groups.amax(1) > floor, as_tuple=True) if width else 2 * [torch.zeros(0).long()]
    near = groups[row, :, group]
    pair, member = torch.nonzero(near > floor[row], as_tuple=True)
    rest_row, rest = torch.nonzero(scores[:, width * GROUP :] > floor, as_tuple=True)
    rows = torch.cat([row[pair], rest_row])
    rows, order = rows.sort(stable=True)
    column = torch.cat([member * width + group[pair], rest + width * GROUP])[order]
    counts = torch.bincount(rows, minlength=batch)
    slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (batch, int(counts.max()) if batch else 0)
    values = scores.new_full(shape, -torch.inf).index_put((rows, slot), scores[rows, column])
    return column.new_zeros(shape).index_put((rows, slot), column), values


class FaissIndex:
    """FAISS over inner products, which proposes a few more items than asked for: exact products decide behind it.

    HNSW has 32 links and a search width of 2 k. IVF keeps a byte a number, of wide vectors 6 bits, and probes as many
    lists as a sample of the item vectors needs for 99 % of what all lists find of its nearest 100. The recall of
    requests that are unlike any item may be lower.
    """

    def __init__(self, kind: str, vectors: Tensor):
        self.kind, self.device, (n_items, dim) = kind, vectors.device, vectors.shape
        self.index: Any
        if kind == "ivf":
            lists = max(1, min(int(n_items**0.5), n_items // 39))  # FAISS wants 39 training points a list
            self._quantizer = faiss.IndexFlatIP(dim)
            bits = faiss.ScalarQuantizer.QT_8bit if dim < WIDE else faiss.ScalarQuantizer.QT_6bit
            self.index = faiss.IndexIVFScalarQuantizer(self._quantizer, dim, lists, bits, faiss.METRIC_INNER_PRODUCT)
            self.index.cp.max_points_per_centroid = POINTS
            drawn = np.random.default_rng(0).permutation(n_items)[: POINTS * lists]
            self.index.train(_rows(vectors, torch.from_numpy(np.sort(drawn))))
        else:
            self.index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        for begin in range(0, n_items, ADDED):
            self.index.add(_rows(vectors, slice(begin, begin + ADDED)))
        if kind == "ivf":
            self.index.nprobe = self._calibrated(vectors)

    def _calibrated(self, vectors: Tensor) -> int:
        """The smallest power of two of lists to probe that finds 99 % of what all lists find of a sample's nearest."""
        drawn = np.random.default_rng(0).choice(len(vectors), min(64, len(vectors)), replace=False)
        sample, k = torch.from_numpy(_rows(vectors, torch.from_numpy(drawn))).to(vectors.device), min(100, len(vectors))
        truth = ExactIndex(vectors).nearest(sample, k)

        def recall(lists: int) -> float:
            self.index.nprobe = lists
            nearest = self.nearest(sample, k)
            return float(np.mean([np.isin(*pair).mean() for pair in zip(truth.cpu(), nearest.cpu(), strict=True)]))

        # A byte a number orders near ties of a dense cluster anew: more lists do not bring these back.
        most = recall(self.index.nlist)
        for lists in (2**power for power in range(self.index.nlist.bit_length())):
            if recall(lists) >= 0.99 * most:
                return lists
        return self.index.nlist

    def nearest(self, queries: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """As ``DenseIndex.nearest``, but somewhat more than ``k`` columns."""
        options: dict[str, Any] = {}
        if mask is not None:
            bits = np.packbits(mask.cpu().numpy(), bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # faiss patches it in Python
        fetched = min(k + k // 4 + 8, self.index.ntotal)
        if self.kind == "ivf":
            params = faiss.SearchParametersIVF(nprobe=self.index.nprobe, **options)  # type: ignore[call-arg]  # as above
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(2 * k, 64), **options)  # type: ignore[attr-defined]  # as above
        rows = np.ascontiguousarray(queries.detach().float().cpu().numpy())
        return torch.from_numpy(self.index.search(rows, fetched, params=params)[1]).to(self.device)

    def extended(self, vectors: Tensor) -> FaissIndex:
        """A copy with more vectors behind its own."""
        grown = copy.copy(self)
        grown.index = faiss.clone_index(self.index)
        if self.kind == "ivf":
            grown.index.nprobe = self.index.nprobe
        for begin in range(0, len(vectors), ADDED):
            grown.index.add(_rows(vectors, slice(begin, begin + ADDED)))
        return grown

    def save(self, path: Path) -> None:
        """Write the index to a file, without the vectors themselves."""
        faiss.write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path, vectors: Tensor) -> FaissIndex | None:
        """The index that ``save`` wrote for the same vectors; None where the file is missing or of other vectors."""
        if not path.is_file():
            return None
        try:
            index = faiss.read_index(str(path))
        except RuntimeError:
            return None
        if (index.ntotal, index.d) != tuple(vectors.shape):
            return None
        loaded = cls.__new__(cls)
        loaded.kind = "ivf" if isinstance(index, faiss.IndexIVF) else "hnsw"
        loaded.device, loaded.index = vectors.device, index
        return loaded


class GrownIndex:
    """A FAISS index over the first items, and an exact product with those that were added since.

    After ``TAIL`` added items they go into a copy of the index, as searches may be reading this one.
    """

    def __init__(self, base: DenseIndex, covered: int, vectors: Tensor):
        """``base`` holds the first ``covered`` of ``vectors`` (n_items, dim)."""
        self.base, self.covered, self.vectors = base, covered, vectors.detach()

    def grown(self, vectors: Tensor) -> GrownIndex:
        """The same over ``vectors``, which begin with this one's."""
        base, covered = self.base, self.covered
        if len(vectors) - covered > TAIL and isinstance(base, FaissIndex):
            base, covered = base.extended(vectors[covered:]), len(vectors)
        return GrownIndex(base, covered, vectors)

    def nearest(self, queries: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """As ``DenseIndex.nearest``, but more than ``k`` columns."""
        old, new = (None, None) if mask is None else (mask[: self.covered], mask[self.covered :])
        ids, tail = self.base.nearest(queries, k, old), self.vectors[self.covered :].to(queries.dtype)
        if not len(tail):
            return ids
        added = ExactIndex(tail).nearest(queries, min(k, len(tail)), new)
        return torch.cat([ids, torch.where(added >= 0, added + self.covered, -1)], dim=1)


def _rows(vectors: Tensor, rows: Tensor | slice) -> np.ndarray:
    part = vectors.detach()[rows if isinstance(rows, slice) else rows.to(vectors.device)]
    return np.ascontiguousarray(part.float().cpu().numpy())
