"""A fitted network on disk.

Apart from ``genrec/training``, so that inference does not wait for Lightning to be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genrec.artifacts.folders import open_artifact, read_json
from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import config_from_dict
from genrec.config.schema import Config
from genrec.data.situation import Situation
from genrec.errors import UserError
from genrec.model.network import GenerativeRecommender
from genrec.model.packed import table_length, table_rows, unpacked
from genrec.model.sasrec import BSARec, SASRec
from genrec.model.taste import Taste

KIND = "model"
IDS, NODES = "item_encoder.ids.weight", "decoder.nodes.weight"  # tables with a row for each item and each node
PRIOR = "decoder.prior_weight"
TASTE = "taste.own"
SEQUENCE_BASELINES = {"sasrec": SASRec, "bsarec": BSARec}
RESOLVED = "resolved.json"  # the config with all values chosen by rule; config.json holds what the user wrote


class WithoutDraws(TorchFunctionMode):
    """A context in which modules are made without drawing their large weights, for those that are loaded next.

    A draw for each number of a million items takes longer than reading them.
    """

    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Leave out the draws; everything else as usual."""
        kwargs = kwargs or {}
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_network(
    kind: str, config: Config, catalogue: Catalogue, n_actions: int, time_base: float, generate: bool,
    situation: Situation | None = None,
) -> GenerativeRecommender | SASRec:  # fmt: skip
    """A network of a kind, ``genrec``, ``sasrec`` or ``bsarec``, with fresh weights; the first reads ``situation``."""
    if kind in SEQUENCE_BASELINES:
        return SEQUENCE_BASELINES[kind](config.model, catalogue, time_base)
    return GenerativeRecommender(config.model, catalogue, n_actions, time_base, generate, situation)


def load_network(folder: Path, dataset_actions: int, ids: SemanticIds) -> tuple[GenerativeRecommender | SASRec, Config]:
    """The network of a model folder, in evaluation mode, with the config it was fitted with."""
    manifest = open_artifact(folder, KIND)
    config = config_from_dict(read_json(folder / RESOLVED), str(folder / RESOLVED))
    info = manifest["info"]
    with WithoutDraws():
        network = build_network(
            info["network"],
            config,
            ids.catalogue,
            dataset_actions,
            info["time_base"],
            info["generate"],
            Situation.from_state(info["situation"]) if info.get("situation") else None,
        )
    weights = load_file(folder / "model.safetensors")
    if TASTE in weights and isinstance(network, GenerativeRecommender):
        network.taste = Taste(len(weights[TASTE]), ids.catalogue.text.shape[1])
    if PRIOR in weights:
        weights[PRIOR] = weights[PRIOR].view(1)  # a scalar in earlier models
    decoder = network.decoder if isinstance(network, GenerativeRecommender) else None
    if (
        decoder is not None
        and decoder.own_nodes is not None
        and table_length(weights, NODES) > len(decoder.nodes.weight)
    ):
        # Saved by a version that kept vectors of all nodes.
        own = table_rows(weights, NODES, decoder.own_nodes)
        weights = {name: value for name, value in weights.items() if not name.startswith(NODES)}
        weights[NODES] = F.pad(own, (0, 0, 0, 1))
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    weights = {name: tensor.to(types.get(name, tensor.dtype)) for name, tensor in unpacked(weights).items()}
    try:
        network.load_state_dict(weights, assign=True)  # nothing is copied, and a large table is read when it is used
    except RuntimeError as error:  # a folder of a version whose network had other parts
        raise UserError(f"{folder}: its weights do not fit this version of genrec; train it again") from error
    return network.eval(), config
