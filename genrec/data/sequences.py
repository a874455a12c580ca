"""Windows over long sequences: which events a training row reads and which it predicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Training windows (W,): events ``start`` to ``stop`` - 1 of the log; those from ``first`` on are predicted.

    ``end``: behind the last event of the window's user that the training may count.
    """

    start: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def make_windows(offsets: np.ndarray, lengths: np.ndarray, max_length: int, stride: int) -> Windows:
    """Cover each user's first ``lengths`` events with windows.

    The first window predicts up to ``max_length`` events, each later one ``stride`` new ones. No event is predicted
    twice, and every context fits into ``max_length``.
    """
    stride = min(stride, max_length)
    extra = np.maximum(0, -(-(lengths - max_length - 1) // stride))
    count = np.where(lengths > 0, 1 + extra, 0)
    user = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    first = np.where(number == 0, 0, max_length + 1 + (number - 1) * stride)
    stop = np.minimum(lengths[user], max_length + 1 + number * stride)
    start = np.maximum(0, stop - 1 - max_length)
    begin = np.asarray(offsets)[user]
    return Windows(begin + start, begin + np.maximum(first, start), begin + stop, begin + lengths[user])
