"""Chunks that share a tensor of their step give the gradients of chunks that compute it each."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from genrec.training.step_tensors import StepTensors


def gradients(shared: bool) -> tuple[dict[str, torch.Tensor], int]:
    torch.manual_seed(0)
    network, step, computed = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), StepTensors(), []
    inputs, chunks = torch.randn(7, 5), torch.randint(7, (3, 6))

    def items():
        computed.append(1)
        return network(inputs)

    for chunk in chunks:
        if shared:
            table = step.get("items", items)
            index = step.get("index", lambda: F.normalize(step.source("items"), dim=-1))
        else:
            table = items()
            index = F.normalize(table, dim=-1)
        (table[chunk[:2]] @ index.T).logsumexp(1).sum().backward()
    if shared:
        step.backward()
    assert not step.made
    return {name: parameter.grad for name, parameter in network.named_parameters()}, len(computed)


def test_shared_tensors_have_the_sum_of_the_gradients():
    (mine, once), (theirs, often) = gradients(True), gradients(False)
    assert (once, often) == (1, 3)
    for name, gradient in theirs.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(mine[name], gradient)


def test_a_tensor_without_gradient_is_shared_too():
    step = StepTensors()
    assert torch.equal(step.get("fixed", lambda: torch.ones(2)), torch.ones(2))
    step.backward()
    assert not step.made
