"""A fitted network on disk.

Apart from ``genrec/training``, so that inference does not wait for Lightning to be imported.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from genrec.artifacts.folders import open_artifact, read_json
from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import config_from_dict
from genrec.config.schema import Config
from genrec.errors import UserError
from genrec.model.network import GenerativeRecommender
from genrec.model.packed import unpacked
from genrec.model.sasrec import SASRec

KIND = "model"
RESOLVED = "resolved.json"  # the config with all values chosen by rule; config.json holds what the user wrote


def build_network(
    kind: str, config: Config, catalogue: Catalogue, n_actions: int, time_base: float, generate: bool
) -> GenerativeRecommender | SASRec:  # fmt: skip
    """A network of a kind, ``genrec`` or ``sasrec``, with fresh weights."""
    if kind == "sasrec":
        return SASRec(config.model, catalogue, time_base)
    return GenerativeRecommender(config.model, catalogue, n_actions, time_base, generate)


def load_network(folder: Path, dataset_actions: int, ids: SemanticIds) -> tuple[GenerativeRecommender | SASRec, Config]:
    """The network of a model folder, in evaluation mode, with the config it was fitted with."""
    manifest = open_artifact(folder, KIND)
    config = config_from_dict(read_json(folder / RESOLVED), str(folder / RESOLVED))
    info = manifest["info"]
    network = build_network(
        info["network"], config, ids.catalogue, dataset_actions, info["time_base"], info["generate"]
    )
    try:
        network.load_state_dict(unpacked(load_file(folder / "model.safetensors")))
    except RuntimeError as error:  # a folder of a version whose network had other parts
        raise UserError(f"{folder}: its weights do not fit this version of genrec; train it again") from error
    return network.eval(), config
