"""A dry run of GPU code without a GPU.

PyTorch's meta device computes shapes alone and refuses to hand values back to the host.

Meta lets some mixed placements pass (matmul, gather, embedding, indexing by a CPU tensor) that CUDA refuses.
``OneDevice`` closes that gap.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.empty_like.default}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, but for copies.

    As on CUDA, CPU scalars (0 dimensions) may join in.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in COPIES:
            tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            devices = {value.device.type for value in tensors if value.ndim or value.device.type != "cpu"}
            if len(devices) > 1:
                shapes = [(value.device.type, tuple(value.shape)) for value in tensors]
                raise RuntimeError(f"{func} mixes devices: {shapes}")
        return func(*args, **kwargs)


class ReadBacks:
    """Stands in for ``read_back``, which meta cannot answer: says 7 for each size and counts the calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, sizes):
        self.calls += sizes.device.type == "meta"
        return [7] * sizes.numel() if sizes.device.type == "meta" else sizes.flatten().tolist()
