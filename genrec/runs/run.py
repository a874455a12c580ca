"""A run folder: its config, its artefacts, and what answers requests with one of its fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from genrec.artifacts.folders import open_artifact, read_json
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import config_from_dict, load_config, with_overrides
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, VALID, Dataset, Requests
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import load_network
from genrec.ranking.candidates import CandidateGenerator
from genrec.ranking.features import CandidateFeatures, ItemFacts
from genrec.ranking.ranker import Ranker
from genrec.ranking.reranker import Reranker
from genrec.retrieval.bm25 import BM25
from genrec.semantic_ids.text_space import text_cache
from genrec.training.distributed import on_gpu

RERANKER_KIND = "reranker"


FEATURES_KIND = "candidate_features"


FITTED = {
    "train": ("model", "features", TRAIN),
    "preferred": ("model_preferred", "features", TRAIN),
    "train+valid": ("model_refit", "features_refit", VALID),
}


TASKS = ("recommendation", "search")


class Run:
    """A run folder and the config that made it."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, config_path: str, overrides: list[str]) -> Run:
        """The run of a config; ``config.json`` in its folder is what later commands read."""
        config = load_config(config_path, overrides)
        folder = Path(config.output) / config.name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, config)

    @classmethod
    def open(cls, folder: str | Path, overrides: list[str] | None = None) -> Run:
        """A run folder made earlier; ``overrides`` change its config for this once. ``UserError`` when it is none or is not whole."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; make it with: genrec run CONFIG")
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a run folder (no config.json); make one with: genrec run CONFIG")
        config = config_from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
        return cls(folder, with_overrides(config, overrides) if overrides else config)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.folder / "dataset")

    @cached_property
    def ids(self) -> SemanticIds:
        return SemanticIds.load(self.folder / "semantic_ids", text_cache(self.config))

    @cached_property
    def lexical(self) -> BM25:
        return BM25().fit(self.dataset.item_table)

    @property
    def fitted(self) -> list[str]:
        """Which fits are there: ``train``, ``preferred`` where the preference stage kept its decoder, ``train+valid`` after a refit."""
        return [name for name, (model, _, _) in FITTED.items() if (self.folder / model / "manifest.json").is_file()]

    def ranker(self, fitted_on: str = "train", fused: bool = True) -> Ranker:
        """Everything needed to answer requests with one of the fits."""
        if fitted_on not in FITTED:
            raise UserError(f"--fitted-on: '{fitted_on}' is not one of {', '.join(FITTED)}")
        model, table, _ = FITTED[fitted_on]
        network, fitted_config = load_network(self.folder / model, len(self.dataset.actions_chain), self.ids)
        network = network.to("cuda" if on_gpu(self.config.training.accelerator) else "cpu")
        facts = ItemFacts.from_table(self.dataset.item_table, self.ids.catalogue.text.cpu().numpy())
        open_artifact(self.folder / "candidate_features", FEATURES_KIND)
        evidence = CandidateFeatures.load(self.folder / "candidate_features" / f"{table}.npz", facts)
        generator = CandidateGenerator(network, evidence, self.config.decoding, self.lexical)
        rerankers = None
        if fused:
            open_artifact(self.folder / "reranker", RERANKER_KIND)
            rerankers = {
                task: Reranker.from_state(load_file(self.folder / "reranker" / f"{task}.safetensors")) for task in TASKS
            }
        return Ranker(generator, fitted_config.model, self.ids.encoder, self.config.decoding, rerankers)

    def sasrec_scorer(self, fitted_on: str) -> Callable[[Requests], np.ndarray]:
        """Scores of the SASRec baseline over the catalogue: requests -> (N, n_items)."""
        network, config = load_network(
            self.folder / ("sasrec" if fitted_on == "train" else "sasrec_refit"),
            len(self.dataset.actions_chain),
            self.ids,
        )
        collator = Collator(config.model, QueryFeatures.build(self.dataset.query_texts, self.ids.encoder))
        with torch.inference_mode():
            items = network.item_encoder()
            index = network.item_index(items)

        def score(requests: Requests) -> np.ndarray:
            with torch.inference_mode():
                encoded = network.encode(collator.requests(requests), items)
                return (network.retrieval_vectors(encoded.requests[:, 0]) @ index.T).numpy()

        return score
