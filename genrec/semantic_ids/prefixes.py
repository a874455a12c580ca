"""Distinct prefixes of codes, numbered in code order."""

from __future__ import annotations

import numpy as np


def code_order(codes: np.ndarray) -> np.ndarray:
    """The stable order of the rows of codes (n, L), not negative: (n,).

    Codes and row number share one 64-bit key where they fit.
    """
    n, depth = codes.shape
    bits = [int(codes[:, level].max()).bit_length() for level in range(depth)]
    row_bits = n.bit_length()
    if sum(bits) + row_bits > 63:
        return np.lexsort(codes.T[::-1])
    keys = np.zeros(n, np.int64)
    for level in range(depth):
        keys = (keys << bits[level]) | codes[:, level]
    return np.sort((keys << row_bits) | np.arange(n)) & ((1 << row_bits) - 1)


def prefix_ids(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct prefixes of codes (n, L), not negative, in code order.

    Returns `order` (n,), a stable sort of the rows, and `ids` (n, L): ids[i, l] is the rank, among all distinct
    prefixes of length l + 1, of row i's prefix. One sort and L running sums.
    """
    order = code_order(codes)
    ids = np.empty(codes.shape, np.int64)
    differs = np.zeros(len(codes), bool)
    for level in range(codes.shape[1]):
        column = codes[order, level]
        differs[1:] |= column[1:] != column[:-1]
        ids[order, level] = np.cumsum(differs)
    return order, ids
