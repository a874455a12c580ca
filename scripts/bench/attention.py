"""FlexAttention with a block mask against scaled_dot_product_attention with an explicit mask, on the network's own
masks.

    python scripts/bench/attention.py
    python scripts/bench/attention.py --device cuda     # also forward + backward

*answering*: one request at the end of each history; *training*: a request at every event. Both take the mask as they
need it: the explicit one is
made of comparisons for every batch, the block mask besides from it. Rounds alternate in one process, the fastest of
each counts. FlexAttention
is compiled; on a CPU torch has no backward for it (it raises ``NotImplementedError``), so only the forward is timed
there.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from genrec.model.backbone import sequence_mask

SHAPES = {
    "answering, T 50": (64, 50, 1),
    "answering, T 512": (16, 512, 1),
    "training, T 50": (32, 50, 50),
    "training, T 256": (8, 256, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    compiled = torch.compile(flex_attention, dynamic=False)
    print(
        f"{torch.get_num_threads()} threads, {options.device}, {options.heads} heads of {options.dim // options.heads}, torch {torch.__version__}\n"
    )
    print(
        "| mask | SDPA, ms | its mask, ms | FlexAttention, ms | its block mask, ms | x SDPA, masks counted | largest difference |"
    )
    print("| --- " * 7 + "|")
    for name, (batch, length, requests) in SHAPES.items():
        print(row(name, batch, length, requests, options, compiled))


def row(name: str, batch: int, length: int, requests: int, options: argparse.Namespace, compiled) -> str:
    torch.manual_seed(0)
    positions = (
        torch.arange(length, device=options.device).expand(batch, -1)
        if requests == length
        else torch.full((batch, 1), length, device=options.device)
    )
    size = length + requests
    shape = (3, batch, options.heads, size, options.dim // options.heads)
    q, k, v = torch.randn(shape, device=options.device).unbind()
    learns = options.device != "cpu"
    if learns:
        q, k, v = (one.requires_grad_() for one in (q, k, v))

    def explicit() -> Tensor:
        return sequence_mask(length, positions)

    mask = explicit()

    def blocked():
        return create_block_mask(lambda b, h, i, j: mask[b, i, j], batch, None, size, size, device=options.device)

    block = blocked()

    def step(attend) -> Tensor:
        with torch.set_grad_enabled(learns):
            found = attend()
        if learns:
            found.sum().backward()
        return found.detach()

    def sdpa() -> Tensor:
        return step(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]))

    def flex() -> Tensor:
        return step(lambda: compiled(q, k, v, block_mask=block))

    apart = float((sdpa() - flex()).abs().max())
    best = [float("inf")] * 4
    for _ in range(options.rounds):
        for place, one in enumerate((sdpa, explicit, flex, blocked)):
            best[place] = min(best[place], seconds(one, options.device))
    ratio = (best[2] + best[3]) / (best[0] + best[1])
    return f"| {name} | " + " | ".join(f"{1000 * one:.2f}" for one in best) + f" | {ratio:.1f} | {apart:.0e} |"


def seconds(call, device: str) -> float:
    """Mean of a handful of calls."""
    begin = time.perf_counter()
    for _ in range(5):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / 5


if __name__ == "__main__":
    main()
