"""What a pass costs, by formula, before anything is trained."""

from __future__ import annotations

from genrec.config.schema import ModelConfig


def encode_flops(model: ModelConfig, sequences: int, events: float, requests: float) -> float:
    """Floating-point operations of one forward pass of the backbone over contexts, requests and reasoning blocks.

    ``sequences`` rows of ``events`` context tokens and ``requests`` requests each, padding included. Two operations
    per multiply-add; norms, rotations, embeddings and anchors are left out (a few per cent).
    """
    dim, cached, total = model.dim, 0.0, 0.0
    requests *= 1 + 2 * model.user_tokens + model.summary_tokens  # tokens of a request's block
    per_token = 24 * dim * dim  # qkv 3, output 1, feed-forward 8 times dim x dim multiply-adds
    for tokens in (events + requests, *[requests] * model.reasoning_steps):
        cached += tokens
        total += model.layers * tokens * (per_token + 4 * cached * dim)
    return sequences * total


def step_flops(
    model: ModelConfig, sequences: int, events: float, requests: float, scored: int, n_items: int, text_dim: int
) -> float:
    """Operations of one training step without the code decoder.

    Passes forward and backward (twice the forward), the softmax over ``scored`` items for every request, and the text
    projection of all ``n_items``.
    """
    softmax = 2.0 * sequences * requests * scored * model.dim
    text = 2.0 * n_items * text_dim * model.dim if "text" in model.item_inputs else 0.0
    return 3 * (encode_flops(model, sequences, events, requests) + softmax + text)
