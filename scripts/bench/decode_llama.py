"""A Llama-shaped network as a scorer of the engine, beside the same network in Hugging Face ``generate``.

Both read the same prompt and rank by the same rule: log-probabilities renormalised over the legal codes of each level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from genrec.catalogue.trie import CatalogueTrie

EOS, PAD, FIRST = 0, 1, 2  # tokens before the codes
_linear = (
    torch.ops.mkldnn._linear_pointwise
)  # oneDNN with weights in its own order: a third faster than the plain product for few rows


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


class PackedLlama:
    """The weights of a Llama network as few large products: query, key and value in one, the norms' gains folded into
    what follows them,
    the two halves of each rotary pair side by side so that turning them is one complex product.

    Only differences of positions count, so they are counted from the first code on: beams at that position need no
    turning at all.
    """

    def __init__(self, model: LlamaForCausalLM, tokens: Tensor, trie: CatalogueTrie):
        inner, config = model.model, model.config
        self.heads, self.dim, self.eps = config.num_attention_heads, config.hidden_size, config.rms_norm_eps
        width = self.dim // self.heads
        pairs = torch.arange(width).view(2, -1).T.flatten() + torch.arange(self.heads)[:, None] * width
        self.layers = []
        for layer in inner.layers:
            attention, mlp = layer.self_attn, layer.mlp
            turned = [part.weight[pairs.flatten()] for part in (attention.q_proj, attention.k_proj)]
            qkv = torch.cat([*turned, attention.v_proj.weight]) * layer.input_layernorm.weight
            gain = layer.post_attention_layernorm.weight
            parts = (
                qkv,
                attention.o_proj.weight,
                mlp.gate_proj.weight * gain,
                mlp.up_proj.weight * gain,
                mlp.down_proj.weight,
            )
            self.layers.append([torch.ops.mkldnn._reorder_linear_weight(part.detach().contiguous()) for part in parts])
        self.span = config.max_position_embeddings
        angles = torch.arange(-self.span, trie.depth)[:, None] * inner.rotary_emb.inv_freq
        self.turns = torch.polar(torch.ones_like(angles), angles)  # (positions, width / 2) complex
        self.embedding, self.tokens = inner.embed_tokens.weight.detach(), tokens
        head = model.lm_head.weight.detach() * inner.norm.weight.detach()
        self.root = torch.ops.mkldnn._reorder_linear_weight(head[tokens[trie.level_bounds[1] : trie.level_bounds[2]]])
        starts = torch.tensor([FIRST, *trie.vocab_sizes]).cumsum(0).tolist()
        self.starts = starts  # first token of every level
        self.codes = [
            torch.ops.mkldnn._reorder_linear_weight(head[first:after])
            for first, after in zip(starts, starts[1:], strict=False)
        ]
        self.level_sizes = trie.vocab_sizes
        self.smallest = torch.full((1,), self.eps)

    def project(self, x: Tensor, weight: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, M, dim), each (B, heads, M, width); ``turn`` None at the position that
        counts as 0."""
        mixed = _linear(self.norm(x), weight, None, "none", [], "").view(*x.shape[:2], 3, self.heads, -1)
        if turn is None:
            return tuple(part.transpose(1, 2) for part in mixed.unbind(2))
        turned = torch.view_as_real(torch.view_as_complex(mixed[:, :, :2].unflatten(-1, (-1, 2))) * turn).flatten(-2)
        return turned[:, :, 0].transpose(1, 2), turned[:, :, 1].transpose(1, 2), mixed[:, :, 2].transpose(1, 2)

    def close(self, x: Tensor, mixed: Tensor, out: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """What follows attention: x (B, M, dim) and its result (B, heads, M, width)."""
        x = _linear.binary(mixed.transpose(1, 2).flatten(2), x, out, None, "add")
        inner = self.norm(x)
        inner = _linear.binary(inner, _linear(inner, gate, None, "swish", [], ""), up, None, "mul")
        return _linear.binary(inner, x, down, None, "add")

    def norm(self, x: Tensor) -> Tensor:
        """RMS norm without gain, in half of the calls that ``F.rms_norm`` takes on a CPU."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.smallest, length, length, value=1 / self.dim).rsqrt_()

    def products(self, prompt: int, rows: list[int]) -> None:
        """The matrix products of a search alone: a prompt of ``prompt`` positions and steps of so many ``rows``."""
        for count in (prompt, *rows):
            for index, (qkv, out, gate, up, down) in enumerate(self.layers):
                x = torch.zeros(1, count, self.dim)
                _linear(x, qkv, None, "none", [], "")
                if count == prompt and index == len(self.layers) - 1:
                    x = x[:, :1]
                _linear(x, out, None, "none", [], "")
                _linear(x, gate, None, "none", [], "")
                _linear(_linear(x, up, None, "none", [], ""), down, None, "none", [], "")


class LlamaScorer:
    """The prompt runs once per request; beams share its keys and values. Every row that ran stays where it is, behind
    the prompt, and a
    row attends to the prompt and, by a mask, to its own line of ancestors: nothing is copied or reordered."""

    def __init__(self, network: PackedLlama, prompt: Tensor, rows: int):
        batch, self.length = prompt.shape
        self.network, self.used = network, 0
        shape = (batch, network.heads, self.length + rows, network.dim // network.heads)
        self.pool = [(torch.empty(shape), torch.empty(shape)) for _ in network.layers]
        self.hidden = torch.empty(batch, rows + 1, network.dim)
        self.mask = torch.full((batch, 1, rows, self.length + rows), -torch.inf)
        self.mask[..., : self.length] = 0
        x = F.embedding(prompt, network.embedding)
        turn = network.turns[network.span - self.length : network.span, None, None]
        last = len(network.layers) - 1
        for index, ((keys, values), (qkv, *rest)) in enumerate(zip(self.pool, network.layers, strict=True)):
            q, k, v = network.project(x, qkv, turn)
            keys[:, :, : self.length], values[:, :, : self.length] = k, v
            if index == last:  # the last position is the root's row: only its state scores codes
                x, q = x[:, -1:], q[:, :, -1:]
            x = network.close(x, F.scaled_dot_product_attention(q, k, v, is_causal=index < last), *rest)
        self.hidden[:, :1] = network.norm(x)

    def expand(self, depth: int, nodes: Tensor, parents: Tensor | None) -> int:
        if depth == 0:
            return 0
        network, first, rows = self.network, self.used, nodes.shape[1]
        self.used += rows
        end = self.length + self.used
        mask = self.mask[:, :, first : self.used, :end]
        if depth > 1:  # slot s is row s - 1 of the pool
            mask[:, 0] = self.mask[torch.arange(len(nodes))[:, None], 0, parents - 1, :end]
        mask[..., self.length + first :].diagonal(dim1=-2, dim2=-1).zero_()
        x = F.embedding(network.tokens[nodes], network.embedding)
        turn = network.turns[network.span + depth - 1] if depth > 1 else None
        for (keys, values), (qkv, *rest) in zip(self.pool, network.layers, strict=True):
            q, keys[:, :, end - rows : end], values[:, :, end - rows : end] = network.project(x, qkv, turn)
            mixed = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)
            x = network.close(x, mixed, *rest)
        self.hidden[:, first + 1 : self.used + 1] = network.norm(x)
        # A level has few codes: all of them for every row cost less than collecting the vectors of the legal ones.
        logits = _linear(self.hidden[:, first + 1 : self.used + 1], network.codes[depth], None, "none", [], "")
        self.logits, self.first = logits.flatten(1), first + 1
        self.code, self.width = network.starts[depth], network.level_sizes[depth]
        return first + 1

    def root_logits(self, first: int, last: int) -> Tensor:
        return _linear(self.hidden[:, 0], self.network.root, None, "none", [], "")

    def child_logits(self, children: Tensor, slots: Tensor) -> Tensor:
        codes = self.network.tokens.index_select(0, children.flatten()).view_as(children) - self.code
        return self.logits.gather(1, (slots - self.first) * self.width + codes)


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
