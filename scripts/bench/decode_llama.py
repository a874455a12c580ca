"""A Llama-shaped network as a scorer of the engine, beside the same network in Hugging Face ``generate``.

Both read the same prompt and rank by the same rule: log-probabilities renormalised over the legal codes of each level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from genrec.semantic_ids.trie import CatalogueTrie

EOS, PAD, FIRST = 0, 1, 2  # tokens before the codes


def make_llama(trie: CatalogueTrie, dim: int, layers: int, positions: int) -> LlamaForCausalLM:
    """A random network over one token per code of each level."""
    config = LlamaConfig(
        vocab_size=FIRST + sum(trie.vocab_sizes), hidden_size=dim, intermediate_size=4 * dim, num_hidden_layers=layers,
        num_attention_heads=max(dim // 64, 1), max_position_embeddings=positions, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None,
        initializer_range=0.08,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def node_tokens(trie: CatalogueTrie) -> Tensor:
    """The token of every node's code: (n_nodes,)."""
    starts = torch.tensor([FIRST, *trie.vocab_sizes]).cumsum(0)[:-1]
    level = torch.repeat_interleave(torch.arange(trie.depth), trie.level_start.diff()[1:])
    return torch.cat([torch.tensor([PAD]), trie.node_code[1:] + starts[level]])


class LlamaScorer:
    """The prompt runs once per request; beams share its keys and values, and each carries its own codes only."""

    def __init__(self, model: LlamaForCausalLM, prompt: Tensor, tokens: Tensor):
        self.model, self.tokens, self.length = model, tokens, prompt.shape[1]
        self.context: list[tuple[Tensor, Tensor]] = []
        self.lines: list[tuple[Tensor, Tensor]] = []
        self.base = 0
        inner = model.model
        x = inner.embed_tokens(prompt)
        turn = inner.rotary_emb(x, torch.arange(self.length)[None])
        for index, layer in enumerate(inner.layers):
            q, k, v = self._project(layer, x, turn)
            self.context.append((k, v))
            if index == len(inner.layers) - 1:  # the last position is the root's row: only its state scores codes
                x, q = x[:, -1:], q[:, :, -1:]
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
            x = self._close(layer, x, mixed)
        self.states = inner.norm(x)

    @staticmethod
    def _project(layer, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mine, attention = layer.input_layernorm(x), layer.self_attn
        shape = (*x.shape[:2], -1, attention.head_dim)
        q, k, v = (part(mine).view(shape).transpose(1, 2) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        return *apply_rotary_pos_emb(q, k, *turn), v

    @staticmethod
    def _close(layer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def expand(self, depth: int, nodes: Tensor, parents: Tensor | None) -> int:
        if depth == 0:
            return 0
        inner, (batch, rows) = self.model.model, nodes.shape
        heads, width = inner.config.num_attention_heads, inner.config.hidden_size // inner.config.num_attention_heads
        x = inner.embed_tokens(self.tokens[nodes])
        turn = inner.rotary_emb(x, torch.full((batch, rows), self.length + depth - 1))
        grown = []
        place = None if depth == 1 else (parents - self.base)[:, None, :, None, None]
        for index, layer in enumerate(inner.layers):
            q, k, v = self._project(layer, x, turn)
            line_k, line_v = k[:, :, :, None], v[:, :, :, None]  # (B, heads, rows, codes, width)
            if place is not None:
                old_k, old_v = self.lines[index]
                lane = place.expand(-1, heads, -1, old_k.shape[3], width)
                line_k, line_v = torch.cat([old_k.gather(2, lane), line_k], 3), torch.cat([old_v.gather(2, lane), line_v], 3)
            keys, values = self.context[index]
            own = (q[:, :, :, None] * line_k).sum(-1)
            weight = (torch.cat([q @ keys.transpose(2, 3), own], dim=-1) * width**-0.5).softmax(-1)
            mixed = weight[..., : self.length] @ values + (weight[..., self.length :, None] * line_v).sum(3)
            x = self._close(layer, x, mixed)
            grown.append((line_k, line_v))
        self.lines = grown
        self.base = 1 if depth == 1 else self.base + self.states.shape[1]
        self.states = inner.norm(x)
        return self.base

    def root_logits(self, first: int, last: int) -> Tensor:
        return self.states[:, 0] @ self.model.lm_head.weight[self.tokens[first:last]].T

    def child_logits(self, children: Tensor, slots: Tensor) -> Tensor:
        weight = self.model.lm_head.weight[self.tokens[children]]
        states = self.states.gather(1, (slots - self.base)[..., None].expand(-1, -1, weight.shape[-1]))
        return torch.linalg.vecdot(weight, states)


def hugging_face(model: LlamaForCausalLM, prompt: Tensor, table: dict, depth: int, beams: int) -> tuple[list, Tensor]:
    """Constrained ``generate`` with a Python-dict trie of tokens: code tokens of the beams, and their scores."""
    length = prompt.shape[1]

    def legal(batch: int, sequence: Tensor) -> list[int]:
        node = table
        for token in sequence[length:].tolist():
            node = node.get(token, {})
        return list(node) or [EOS]

    result = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=depth, num_beams=beams, num_return_sequences=beams, do_sample=False,
        prefix_allowed_tokens_fn=legal, renormalize_logits=True, length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return result.sequences[:, length:].tolist(), result.sequences_scores


def dict_trie(paths: list[list[int]]) -> dict:
    table: dict = {}
    for path in paths:
        node = table
        for token in path:
            node = node.setdefault(token, {})
    return table
