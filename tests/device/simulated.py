"""A device made of host memory: values as on the CPU, rules as on a GPU.

``OneDevice`` over plain meta tensors checks shapes and placements but has no values, so nothing that ends in a list of
items can run under it. Here a tensor on the device says ``meta`` and keeps its values in a CPU tensor of its own, so a
whole request runs and its answer can be compared with the CPU's. As on CUDA, operations on tensors of two places are
refused but for copies and CPU scalars, and ``numpy`` knows host tensors alone. Values that the host reads are counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
READS = {
    aten.item.default,
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten._unique2.default,
    aten.masked_select.default,
}


class OnDevice(torch.Tensor):
    """A tensor of the simulated device; ``value`` holds its numbers."""

    @staticmethod
    def __new__(cls, value: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.value = value
        return made

    def __repr__(self, **_):
        return f"OnDevice({self.value})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, Counter())


def _caller() -> str:
    """The line of the package that waits."""
    frame = sys._getframe(1)
    while frame is not None and "genrec" not in Path(frame.f_code.co_filename).parts[-3:-1]:
        frame = frame.f_back
    return "a test" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def run(func, args, kwargs, reads: Counter):
    """One operation, on the values; its results are on the device of its tensors, or on the one that it names."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in tensors if isinstance(leaf, OnDevice)]
    named = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    crosses = func.overloadpacket in (aten._to_copy, aten.to, aten.copy_)
    if not crosses and there and any(leaf.ndim for leaf in tensors if not isinstance(leaf, OnDevice)):
        raise RuntimeError(f"{func} mixes devices: {[(type(leaf).__name__, tuple(leaf.shape)) for leaf in tensors]}")
    inherited = isinstance(args[0], OnDevice) if crosses else bool(there)
    to_device = named[0] == DEVICE if named else inherited
    counts = func.overloadpacket is aten.index and any(one.dtype == torch.bool for one in there if one is not args[0])
    if there and (func in READS or counts or (crosses and not to_device)):
        reads[_caller()] += 1
    if crosses and there and not to_device and func is not aten.copy_.default:
        kwargs = kwargs | {"copy": True} if func.overloadpacket is aten.to else kwargs
    known = {id(leaf.value): leaf for leaf in there}

    def value(leaf):
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return leaf.value if isinstance(leaf, OnDevice) else leaf

    def wrapped(leaf):
        if not isinstance(leaf, torch.Tensor) or not to_device:
            return leaf
        if id(leaf) in known:
            return known[id(leaf)]
        with torch.inference_mode(False):  # views of a tensor made in inference mode cannot be wrapped
            return OnDevice(leaf)

    args, kwargs = tree_map(value, (args, {name: one for name, one in kwargs.items() if name != "pin_memory"}))
    return tree_map(wrapped, func(*args, **kwargs))


class _Conversions(TorchFunctionMode):
    """What never reaches an operation: ``torch.tensor`` with a device, ``new_tensor`` and ``tolist``."""

    def __init__(self, reads: Counter):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            self.reads[_caller()] += 1
            return args[0].value.tolist()
        return func(*args, **kwargs)


class SimulatedDevice(TorchDispatchMode):
    """Within it, ``meta`` is the simulated device: ``tensor.to("meta")`` keeps the values, ``.cpu()`` gives them back.

    ``reads`` counts what the host waits for, by the line that reads it.
    """

    def __init__(self):
        super().__init__()
        self.reads: Counter = Counter()
        self.numbers = _Conversions(self.reads)

    def __enter__(self):
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)
        super().__exit__(*error)
        self.numbers.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, self.reads)
