"""Query -> category and self-distillation against slow float64 references, values and gradients."""

from __future__ import annotations

import torch

from genrec.objectives.category import category_cross_entropy
from genrec.objectives.self_distillation import self_distillation


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.square().sum().sqrt()


def slow_category(requests, items, targets, categories, temperature):
    """One target, one category at a time."""
    names = sorted({int(one) for one in categories if one >= 0})
    table = [unit(sum(unit(items[item]) for item in range(len(items)) if categories[item] == name)) for name in names]
    losses = []
    for request, target in zip(requests, targets, strict=True):
        wanted = int(categories[target])
        if wanted >= 0:
            logits = torch.stack([request @ one / temperature for one in table])
            losses.append(
                torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[names.index(wanted)]
            )
    return sum(losses) / len(losses)


def slow_distillation(student, teacher):
    total = 0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = (torch.exp(one - one.max()) / torch.exp(one - one.max()).sum() for one in (theirs.detach(), ours))
        total = total + (p * torch.log(p / q)).sum()
    return total / len(student)


def test_category_cross_entropy_and_its_gradients_equal_the_reference():
    made = torch.Generator().manual_seed(2)
    requests = torch.nn.functional.normalize(torch.randn(12, 6, generator=made, dtype=torch.float64), dim=-1)
    items = torch.randn(20, 6, generator=made, dtype=torch.float64)
    categories = torch.arange(20) % 5 - 1  # every fifth item has none
    targets = torch.randint(20, (12,), generator=made)
    found = []
    for compute, dtype in ((category_cross_entropy, torch.float32), (slow_category, torch.float64)):
        inputs = [value.detach().to(dtype).requires_grad_() for value in (requests, items)]
        loss = compute(*inputs, targets, categories, 0.3)
        loss.backward()
        found.append([loss.detach().double(), *(value.grad.double() for value in inputs)])
    assert (categories[targets] < 0).any() and found[1][2].abs().sum() > 0
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_self_distillation_and_its_gradient_equal_the_reference():
    made = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(7, 9, generator=made, dtype=torch.float64) for _ in range(2))
    found = []
    for compute, dtype in ((self_distillation, torch.float32), (slow_distillation, torch.float64)):
        ours, theirs = (value.detach().to(dtype).requires_grad_() for value in (student, teacher))
        loss = compute(ours, theirs)
        loss.backward()
        assert theirs.grad is None
        found.append([loss.detach().double(), ours.grad.double()])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
