"""A run folder: its config, its artefacts, and what answers requests with one of its fits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from genrec.artifacts.folders import MANIFEST, check_version, read_json, write_json
from genrec.artifacts.stages import StageGraph
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import config_from_dict, load_config, to_dict, with_overrides
from genrec.config.schema import SEQUENCE_ROWS, Config
from genrec.data.dataset import TRAIN, VALID, Dataset, Requests
from genrec.data.situation import SituationReader
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.model.network import GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import load_network
from genrec.ranking.candidates import CandidateGenerator
from genrec.ranking.features import CandidateFeatures
from genrec.ranking.item_facts import ItemFacts
from genrec.ranking.ranker import Ranker
from genrec.ranking.reranker import Reranker
from genrec.retrieval.lexical import LexicalIndex
from genrec.runs.stages import SPLITS, run_stages
from genrec.semantic_ids.text_space import text_cache
from genrec.training.distributed import compute_device

log = logging.getLogger(__name__)

# Name of a fit -> its model folder, its table of counts, the last split it has seen.
FITTED = {
    "train": ("model", "features", TRAIN),
    "preferred": ("model_preferred", "features", TRAIN),
    "train+valid": ("model_refit", "features_refit", VALID),
}


TASKS = ("recommendation", "search")
CONFIG = "config.json"


class Run:
    """A run folder and the config that made it."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, config_path: str | None, overrides: list[str]) -> Run:
        """The run of a config; ``config.json`` in its folder is what later commands read."""
        config = load_config(config_path, overrides)
        folder = Path(config.output) / config.name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, config)

    @classmethod
    def open(cls, folder: str | Path, overrides: list[str] | None = None) -> Run:
        """A run folder made earlier, with overrides of its config.

        Raises ``UserError`` if it is no run folder, was made by another version, or has a broken config.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; make it with: genrec run CONFIG")
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a run folder (no {CONFIG}); make one with: genrec run CONFIG")
        check_version(folder / "dataset")
        config = config_from_dict(read_json(folder / CONFIG), str(folder / CONFIG))
        return cls(folder, with_overrides(config, overrides) if overrides else config)

    def results(self, split: str = "test", protocol: str | None = None) -> Path:
        """The folder of a split's results, or of those of a protocol."""
        if split not in SPLITS:
            raise UserError(f"--split: '{split}' is not one of {', '.join(SPLITS)}")
        name = SPLITS[split]
        return self.folder / (name if protocol is None else f"{name}_{protocol}")

    def save(self) -> None:
        """Write the config; it is what later commands take as the present one."""
        write_json(self.folder / CONFIG, to_dict(self.config))

    @property
    def stages(self) -> StageGraph:
        """The artefacts that the present config asks for, with their keys."""
        return run_stages(self.folder, self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset."""
        return Dataset(self.folder / "dataset")

    @cached_property
    def ids(self) -> SemanticIds:
        """The semantic IDs with their text encoder."""
        return SemanticIds.load(self.folder / "semantic_ids", text_cache(self.config))

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The words of the catalogue."""
        index = self.folder / "candidate_features" / "lexical.npz"
        if index.is_file():
            return LexicalIndex.load(index)
        return LexicalIndex.fit(self.dataset.item_table, self.dataset.item_counts(TRAIN))

    @property
    def indexes(self) -> Path | None:
        """The folder of saved indexes for dense retrieval: a bundle has one, for its only fit."""
        return None

    @property
    def fitted(self) -> list[str]:
        """The current fits: ``train``, ``preferred`` if the acceptance gate kept it, ``train+valid`` after a refit.

        A model on disk that does not belong to the present config is named in the log and left aside.
        """
        stages, fits = self.stages, []
        for name, (model, _, _) in FITTED.items():
            fault = stages.fault(model)
            if fault is None:
                fits.append(name)
            elif (self.folder / model).is_dir():
                log.warning("%s", fault)
        return fits

    def default_fit(self) -> str:
        """The refit if there is a current one, else what comes before it. ``UserError`` if there is none."""
        fitted = self.fitted
        if fitted:
            return fitted[-1]
        if (self.folder / "model" / MANIFEST).is_file():
            self.stages.require("model")
        raise UserError(f"{self.folder} holds no trained model; run: genrec train CONFIG")

    def ranker(self, fitted_on: str = "train", fused: bool = True) -> Ranker:
        """Everything needed to answer requests with one of the fits.

        ``UserError`` if a part is not current.
        """
        if fitted_on not in FITTED:
            raise UserError(f"--fitted-on: '{fitted_on}' is not one of {', '.join(FITTED)}")
        model, table, _ = FITTED[fitted_on]
        stages = self.stages
        for name in ("dataset", "semantic_ids", model, "candidate_features", *(["reranker"] if fused else [])):
            stages.require(name)
        device, n_actions = compute_device(self.config.training.accelerator), len(self.dataset.actions_chain)
        network, fitted_config = load_network(self.folder / model, n_actions, self.ids)
        network = network.to(device)
        facts = ItemFacts.from_table(self.dataset.item_table, self.ids.catalogue.text.cpu().numpy())
        features = CandidateFeatures.load(self.folder / "candidate_features" / f"{table}.npz", facts)
        assert isinstance(network, GenerativeRecommender)
        generator = CandidateGenerator(network, features, self.config.decoding, self.lexical, self.indexes)
        rerankers = None
        if fused:
            rerankers = {
                task: Reranker.from_state(load_file(self.folder / "reranker" / f"{task}.safetensors")) for task in TASKS
            }
        reader = SituationReader.of(network, self.dataset)
        return Ranker(generator, fitted_config.model, self.ids.encoder, self.config.decoding, rerankers, reader)

    def baseline_scorers(self, fitted_on: str) -> dict[str, Callable[[Requests], np.ndarray]]:
        """``network_scorer`` of the baselines that the config asks for and that are networks, by the name of a row."""
        rows = {name: label for name, label in SEQUENCE_ROWS.items() if name in self.config.evaluation.baselines}
        return {f"{label}, cross-entropy": self.network_scorer(name, fitted_on) for name, label in rows.items()}

    def network_scorer(self, name: str, fitted_on: str) -> Callable[[Requests], np.ndarray]:
        """Scores over the catalogue, requests -> (N, n_items), of the retrieval head of a network.

        ``name``: ``model``, our network, or ``sasrec`` or ``bsarec``, the baselines.
        """
        folder = name if fitted_on == "train" else f"{name}_refit"
        self.stages.require(folder)
        network, config = load_network(self.folder / folder, len(self.dataset.actions_chain), self.ids)
        device = compute_device(self.config.training.accelerator)
        network = network.to(device)
        features = QueryFeatures.build(self.dataset.query_texts, self.ids.encoder)
        collator = Collator(config.model, features, situation=SituationReader.of(network, self.dataset))
        with torch.inference_mode():
            items = network.item_encoder()
            index = network.item_index(items)

        def score(requests: Requests) -> np.ndarray:
            with torch.inference_mode():
                encoded = network.encode(collator.requests(requests).to(device), items)
                return (network.retrieval_vectors(encoded.requests[:, 0]) @ index.T).cpu().numpy()

        return score
