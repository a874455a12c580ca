"""Tensors that all chunks of an optimiser step share, such as the vectors of the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StepTensors:
    """Computes each tensor once a step, though every chunk of the step runs a backward pass of its own.

    Chunks read a leaf, where their gradients add up; ``backward`` takes the sums on into what the tensors were
    computed from.
    """

    def __init__(self) -> None:
        self.made: dict[str, tuple[Tensor, Tensor]] = {}

    def source(self, name: str) -> Tensor:
        """The tensor itself, from which other shared tensors are computed."""
        return self.made[name][0]

    def get(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """The leaf of the tensor ``name``, which ``compute`` makes for the first chunk."""
        if name not in self.made:
            tensor = compute()
            self.made[name] = tensor, tensor.detach().requires_grad_(tensor.requires_grad)
        return self.made[name][1]

    def backward(self) -> None:
        """Behind the last chunk: take the summed gradients on, and forget the tensors."""
        learnt = [(tensor, leaf.grad) for tensor, leaf in self.made.values() if leaf.grad is not None]
        self.made = {}
        if learnt:
            torch.autograd.backward([tensor for tensor, _ in learnt], [gradient for _, gradient in learnt])
