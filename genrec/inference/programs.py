"""``torch.export`` programs of an answer: prefill (one pass of the backbone) and one decode step per code level.

The programs hold no weights: these are their first input (the tensors of ``model.safetensors``, by name), so a
program is small and one set of weights serves all. Batch and length are free from 2 rows and 3 queries on; for this
the network uses ``shape[0]``, because ``len`` of a tensor fixes its size in the program. A beam search in any runtime
that reads exported programs needs nothing else than these, the trie and the two tables of vectors (items and trie
nodes) that ``CandidateGenerator`` computes once at load.

``Recommender`` does not read them: they stand beside the bundle for other runtimes.
"""

from __future__ import annotations

import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call

from genrec.model.batch import Batch
from genrec.model.code_decoder import Memory
from genrec.model.network import GenerativeRecommender
from genrec.ranking.candidates import CandidateGenerator

TOLERANCE = 1e-5


class Prefill(nn.Module):
    """Batch tensors (see ``batch_fields``) and item vectors -> retrieval vectors (B, dim) and decoder memory."""

    def __init__(self, network: GenerativeRecommender):
        super().__init__()
        self.network = network

    def forward(self, batch: list[Tensor], items: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See the class."""
        encoded = self.network.encode(_batch(self.network, batch), items)
        vectors = self.network.retrieval_vectors(encoded.requests[:, 0])
        if self.network.decoder is None:
            return vectors, []
        memory = self.network.decoder_memory(encoded)
        biases = [] if memory.prior is None else [memory.prior.mass.running]
        if memory.copy_bias is not None:
            biases += [memory.copy_bias.nodes, memory.copy_bias.bonus]
        return vectors, [memory.state, memory.mask, *memory.keys, *memory.values, *biases]


class DecodeStep(nn.Module):
    """One level of the beam: memory, node vectors, nodes (B, W) and the cache -> states (B, W, dim) and the new cache.

    The logit of a child is its node vector times the state, times ``decoder.log_scale[level].exp()`` (already in the
    state); with ``model.pointer`` a child that the memory's last but one tensor lists for its request gains the
    number beside it in the last. With ``model.prior`` it gains ``decoder.prior_weight`` times the logarithm of the
    items' probability below it: the difference of two of the running sums (B, n_items + 1) behind the values.
    """

    def __init__(self, network: GenerativeRecommender, level: int):
        super().__init__()
        self.network, self.level = network, level

    def forward(
        self, memory: list[Tensor], vectors: Tensor, nodes: Tensor, cache: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """See the class."""
        decoder = self.network.decoder
        assert decoder is not None
        layers = len(decoder.layers)
        shared = Memory(memory[0], memory[2 : 2 + layers], memory[2 + layers : 2 + 2 * layers], memory[1])
        past = list(zip(cache[::2], cache[1::2], strict=True)) or None
        states, grown = decoder.hidden(shared, vectors, nodes[..., None], self.level, past)
        return states[:, :, 0] * decoder.log_scale[self.level].exp(), [part for pair in grown for part in pair]


class Weightless(nn.Module):
    """A module whose parameters are an input.

    The module is kept in a list, so that none of its weights lands in the program.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.held = [module]

    def forward(self, weights: dict[str, Tensor], arguments: list) -> object:
        """The module's result with these weights."""
        named = {f"network.{name}": value for name, value in weights.items()}
        return functional_call(self.held[0], named, tuple(arguments))


def batch_fields(network: GenerativeRecommender) -> list[str]:
    """The fields of ``Batch`` that answers need."""
    older = [field.name for field in fields(Batch) if field.name.startswith("older") and network.config.summary_tokens]
    situation = [] if network.situation is None else ["situation"]
    return [field.name for field in fields(Batch) if field.default is MISSING] + older + situation


def _batch(network: GenerativeRecommender, tensors: list[Tensor]) -> Batch:
    values: dict[str, Any] = dict(zip(batch_fields(network), tensors, strict=True))
    return Batch(**values)


def example_batch(
    network: GenerativeRecommender, batch: int, length: int, text_dim: int, seed: int = 0
) -> list[Tensor]:
    """Random tensors in the order of ``batch_fields``; every request has one history query and one of its own."""
    made = torch.Generator().manual_seed(seed)
    n_items, n_queries, n_actions = network.catalogue.n_items, batch + 1, network.actions.num_embeddings

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=made)

    ones = torch.ones(batch, 1, dtype=torch.long)
    known = {
        "items": draw(n_items, batch, length),
        "actions": draw(n_actions, batch, length),
        "queries": draw(n_queries, batch, length),
        "times": torch.rand(batch, length, generator=made).cumsum(1).double(),
        "positions": ones * length,
        "request_times": ones.double() * length,
        "request_queries": draw(n_queries, batch, 1),
        "targets": -ones,
        "query_text": torch.rand(n_queries, text_dim, generator=made),
        "query_words": draw(1000, 3 * n_queries),
        "query_offsets": torch.arange(0, 3 * n_queries, 3),
        "older_items": draw(n_items, 2 * batch),
        "older_actions": draw(n_actions, 2 * batch),
        "older_offsets": torch.arange(0, 2 * batch, 2),
    }
    if network.situation is not None:
        known["situation"] = ones[..., None].repeat(1, 1, len(network.situation.offsets))
    return [known[name] for name in batch_fields(network)]


@torch.inference_mode(False)
@torch.no_grad()
def export_programs(generator: CandidateGenerator, folder: Path) -> dict:
    """Write ``prefill.pt2`` and ``step_<level>.pt2`` and compare them with the eager network on inputs of another size.

    Returns the greatest absolute difference per program. Raises ``RuntimeError`` where it is above 1e-5: such a
    program must not ship.
    """
    folder.mkdir()
    network = generator.network.cpu().eval()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    items, text_dim = generator.items.cpu().clone(), network.catalogue.text.shape[1]
    small, large = (example_batch(network, *size, text_dim, seed) for seed, size in enumerate(((3, 5), (4, 7))))
    differences = {
        "prefill": _export(Prefill(network), weights, [small, items], [large, items], folder / "prefill.pt2")
    }
    if network.decoder is not None and generator.nodes is not None:
        nodes = generator.nodes[:].cpu().clone()
        memories = [Prefill(network)(batch, items)[1] for batch in (small, large)]
        caches: list[list[Tensor]] = [[], []]
        for level in range(network.decoder.levels):
            step = DecodeStep(network, level)
            width = 1 if level == 0 else 6
            inputs = [
                [memory, nodes, torch.arange(len(memory[0]) * width).view(-1, width) % len(nodes), cache]
                for memory, cache in zip(memories, caches, strict=True)
            ]
            differences[f"step_{level}"] = _export(step, weights, inputs[0], inputs[1], folder / f"step_{level}.pt2")
            caches = [step(*one)[1] for one in inputs]
            if level == 0:  # from here on every request has as many beams as lanes
                caches = [[part.repeat_interleave(6, dim=0) for part in cache] for cache in caches]
    return {"tolerance": TOLERANCE, "greatest_difference": differences}


def _export(module: nn.Module, weights: dict[str, Tensor], small: list, large: list, path: Path) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = (weights, small)
        program = torch.export.export(
            Weightless(module), arguments, dynamic_shapes=({name: None for name in weights}, _dynamic(small))
        )
        program.example_inputs = None  # they would bring a copy of the weights
        torch.export.save(program, path)
        outputs = torch.export.load(path).module()(weights, large)
    difference = max(
        float((ours - theirs).abs().max()) for ours, theirs in zip(_flat(outputs), _flat(module(*large)), strict=True)
    )
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{path.name}: the exported program differs from the network by {difference:.2e}, more than {TOLERANCE:.0e}"
        )
    return difference


def _dynamic(value):
    if isinstance(value, Tensor):
        return {axis: Dim.AUTO for axis, size in enumerate(value.shape) if size > 1}
    return [_dynamic(part) for part in value]


def _flat(value) -> list[Tensor]:
    return [value.float()] if isinstance(value, Tensor) else [part for child in value for part in _flat(child)]
