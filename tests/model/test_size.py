"""The printed cost against torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genrec.config.schema import ModelConfig
from genrec.model.backbone import Backbone, sequence_mask
from genrec.model.reasoning import Reasoning
from genrec.model.size import encode_flops, step_flops


@pytest.mark.parametrize("steps", [0, 2])
def test_the_formula_counts_what_torch_counts(steps):
    model = ModelConfig(dim=32, layers=2, heads=2, reasoning_steps=steps)
    backbone, reasoning = Backbone(32, 2, 2, 0.0).eval(), Reasoning(32, steps)
    positions = torch.tensor([[1, 4, 6]] * 5)
    x, angles, mask = torch.randn(5, 9, 32), torch.randn(5, 9, 8), sequence_mask(6, positions)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        states, cache = backbone.extend(x, angles, mask)
        if steps:
            reasoning(backbone, states[:, 6:, None], angles[:, 6:], mask[:, 6:, :6], cache)
    assert counter.get_total_flops() == encode_flops(model, 5, 6, 3)


def test_a_step_costs_three_passes_softmax_and_text():
    model = ModelConfig(dim=16)
    assert step_flops(model, 2, 5, 3, 100, 50, 7) == 3 * (
        encode_flops(model, 2, 5, 3) + 2 * 6 * 100 * 16 + 2 * 50 * 7 * 16
    )
    assert step_flops(replace(model, item_inputs=["ids", "codes"]), 2, 5, 3, 0, 50, 7) == 3 * encode_flops(
        model, 2, 5, 3
    )
