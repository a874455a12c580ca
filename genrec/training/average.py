"""Averaged weights: an exponential moving average of what the optimiser makes, which is what is validated, kept and saved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """The average of a network's learnt weights after each optimiser step: ``a <- d x a + (1 - d) x w``.

    ``d`` is ``min(decay, (1 + t) / (10 + t))`` after step t, so that the first, random weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float, kept: dict[str, Tensor] | None = None):
        """``kept``: the ``values`` to go on from; by default the weights as they are."""
        self.network, self.decay = network, decay
        self.values = {
            name: (weight.detach() if kept is None else kept[name].to(weight)).clone()
            for name, weight in self._learnt()
        }
        self.aside: dict[str, Tensor] | None = None  # the network's own weights while the average stands in for them

    def _learnt(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.network.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [weight.detach() for _, weight in self._learnt()], 1 - decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Let the network answer with the average."""
        self.aside = {name: weight.detach().clone() for name, weight in self._learnt()}
        for name, weight in self._learnt():
            weight.copy_(self.values[name])

    @torch.no_grad()
    def swap_out(self) -> None:
        """Give the network its own weights back."""
        for name, weight in self._learnt():
            weight.copy_(self.aside[name])
        self.aside = None
