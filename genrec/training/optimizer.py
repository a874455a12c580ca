"""AdamW whose step costs what the batch touched: rows of large tables that no gradient reached stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genrec.memory import zeros_on_demand

LARGE_TABLE = 1 << 17  # rows; the gradients of larger tables are sparse
ROWS = 1 << 10  # updated at a time, so that they stay in cache


def use_sparse_gradients(network: nn.Module) -> None:
    """Give tables of more than ``LARGE_TABLE`` rows sparse gradients, for ``TouchedRowsAdamW``.

    For one process on a CPU: a GPU updates all rows in the time it takes to list the touched ones, and processes sum
    dense gradients.
    """
    for module in network.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings > LARGE_TABLE:
            module.sparse = True


class TouchedRowsAdamW(torch.optim.AdamW):
    """AdamW, and for parameters with sparse gradients the same on the touched rows alone.

    A row that comes back after idle steps gets the decay of its moments and of its weights for all of them at once.
    What is left out is the movement that a row's moments would have caused in idle steps. A table of which every row
    is touched in every step is updated as by AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see ``torch.optim.Optimizer.step``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for parameter, _, _ in sparse:
            parameter.grad = None
        super().step()
        for parameter, gradient, group in sparse:
            self._update_rows(parameter, gradient.coalesce(), group)
            parameter.grad = gradient
        return loss

    def _update_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rows, state = gradient.indices()[0], self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (
                zeros_on_demand(*parameter.shape, like=parameter) for _ in range(2)
            )
            state["touched"] = torch.zeros(len(parameter), device=parameter.device)  # the last step of each row
        state["step"] += 1
        for some, values in zip(rows.split(ROWS), gradient.values().split(ROWS), strict=True):
            self._update(parameter, some, values, group, state)

    def _update(self, parameter: Tensor, rows: Tensor, values: Tensor, group: dict[str, Any], state: Any) -> None:
        """In place, and rows by index_select and index_copy: indexing takes two to three times as long."""
        step, (beta1, beta2), rate = float(state["step"]), group["betas"], float(group["lr"])
        first, second, touched = state["exp_avg"], state["exp_avg_sq"], state["touched"]
        idle = (step - touched.index_select(0, rows))[:, None]
        touched.index_fill_(0, rows, step)
        mean = first.index_select(0, rows).mul_(beta1**idle).add_(values, alpha=1 - beta1)
        square = second.index_select(0, rows).mul_(beta2**idle).addcmul_(values, values, value=1 - beta2)
        first.index_copy_(0, rows, mean)
        second.index_copy_(0, rows, square)
        change = mean.div_(square.div_(1 - beta2**step).sqrt_().add_(group["eps"]))
        weights = parameter.index_select(0, rows).mul_((1 - rate * group["weight_decay"]) ** idle)
        parameter.index_copy_(0, rows, weights.sub_(change, alpha=rate / (1 - beta1**step)))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale all gradients so that their norm together is at most ``limit``; sparse ones count their touched rows."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(parameter.grad.is_sparse for parameter in parameters if parameter.grad is not None):
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        return
    values = []
    for parameter in parameters:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, (limit / (norm + 1e-6)).clamp(max=1.0))
