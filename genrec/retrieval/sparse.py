"""Sparse tables as wide as the catalogue: products of few rows with them, and the arrays they are saved as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import scipy.sparse as sp

WIDE = 16  # a product of which the columns are more than this many times the entries works on its own columns


def product(left: sp.csr_matrix, table: sp.csr_matrix) -> sp.csr_matrix:
    """``left @ table`` in CSR, at a cost that follows the entries of the rows that ``left`` names.

    SciPy fills buffers as long as the table is wide, which for a single request costs more than everything else. Where
    few entries are involved, the product is made over the columns that occur alone: the same sums in the same order.
    """
    if left.shape[1] > table.shape[0]:  # items that were added since the table was counted have no rows
        left = left[:, : table.shape[0]]
    rows, column = np.unique(left.indices, return_inverse=True)
    lengths = np.diff(table.indptr)[rows]
    if int(lengths.sum()) * WIDE > table.shape[1]:
        return (left @ table).tocsr()
    part = table[rows]
    columns, index = np.unique(part.indices, return_inverse=True)
    narrow = sp.csr_matrix((part.data, index, part.indptr), shape=(len(rows), len(columns)))
    named = sp.csr_matrix((left.data, column, left.indptr), shape=(left.shape[0], len(rows)))
    small = (named @ narrow).tocsr()
    return sp.csr_matrix((small.data, columns[small.indices], small.indptr), shape=(left.shape[0], table.shape[1]))


def kept_values(table: sp.csr_matrix, keep: np.ndarray) -> sp.csr_matrix:
    """The stored values for which ``keep`` (nnz,) bool is true."""
    offsets = np.concatenate([[0], np.cumsum(keep)])[table.indptr]
    return sp.csr_matrix((table.data[keep], table.indices[keep], offsets), shape=table.shape)


def stacked(blocks: Iterable[sp.csr_matrix]) -> sp.csr_matrix:
    """At least one block of rows, one below the other, as by ``scipy.sparse.vstack``.

    Blocks are read one at a time into arrays that grow where they lie, so that nothing is in memory twice.
    """
    lengths, data, indices, columns = [], np.empty(0, np.float32), np.empty(0, np.int32), 0
    for block in blocks:
        begin, columns = len(data), block.shape[1]
        for array, values in ((data, block.data), (indices, block.indices)):
            array.resize(begin + len(values), refcheck=False)
            array[begin:] = values
        lengths.append(np.diff(block.indptr))
    offsets = np.concatenate([[0], *lengths]).cumsum()
    return sp.csr_matrix((data, indices, offsets), shape=(len(offsets) - 1, columns))


def table_arrays(name: str, table: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Plain arrays of a table, each behind ``name``; ``table_of`` takes them back."""
    return {f"{name}_data": table.data, f"{name}_indices": table.indices, f"{name}_indptr": table.indptr}


def table_of(name: str, state: Mapping[str, np.ndarray], shape: tuple[int, int]) -> sp.csr_matrix:
    """The table of a ``shape`` whose ``table_arrays`` are in ``state``."""
    return sp.csr_matrix(tuple(state[f"{name}_{part}"] for part in ("data", "indices", "indptr")), shape=shape)
