"""The tokenize stage: text vectors, co-consumption vectors, codebooks, codes, collisions, quality report."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD

from genrec.artifacts import atomic_folder, fingerprint, is_current, open_artifact, write_json
from genrec.config import Config, to_dict
from genrec.data.dataset import TRAIN, Dataset
from genrec.data.histories import Histories
from genrec.semantic_ids.catalogue import Catalogue
from genrec.semantic_ids.collisions import resolve_collisions
from genrec.semantic_ids.quantizer import Codebooks, default_sizes, fit_codebooks
from genrec.semantic_ids.report import plot_codebook_use, quality_report
from genrec.semantic_ids.text_space import TextSpace
from genrec.semantic_ids.trie import build_trie
from genrec.text.encoder import TextEncoder, encoder_key

log = logging.getLogger(__name__)
KIND = "semantic-ids"
BEHAVIOUR_DIM = 128
TOKENIZE_VERSION = 2


def tokenize_key(config: Config, dataset: Dataset) -> str:
    """The fingerprint of everything the semantic IDs depend on."""
    return fingerprint(TOKENIZE_VERSION, dataset.manifest["key"], encoder_key(config.text), to_dict(config.semantic_ids), config.seed)


def behaviour_vectors(train: Histories, n_items: int, seed: int) -> np.ndarray:
    """Unit vectors of who was consumed with whom, from training events only: (n_items, <= 128) float32; zero for an unseen item."""
    had = train.to_csr(n_items)
    had.data[:] = 1
    degree = np.sqrt(np.maximum(np.asarray(had.sum(axis=0)).ravel(), 1))
    width = np.sqrt(np.maximum(np.asarray(had.sum(axis=1)).ravel(), 1))
    had = had.multiply(1 / degree[None, :]).multiply(1 / width[:, None]).tocsr().astype(np.float32)
    rank = min(BEHAVIOUR_DIM, min(had.shape) - 1)
    if rank < 1:
        return np.zeros((n_items, 1), np.float32)
    vectors = TruncatedSVD(rank, random_state=seed).fit(had).components_.T
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def joint_vectors(text: np.ndarray, behaviour: np.ndarray, share: float) -> np.ndarray:
    """Text and behaviour side by side, weighted so that inner products mix by ``share``; unit length."""
    joint = np.concatenate([np.sqrt(1 - share) * text, np.sqrt(share) * behaviour], axis=1)
    return (joint / np.maximum(np.linalg.norm(joint, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def tokenize(config: Config, dataset: Dataset, target: Path) -> Path:
    """Write text encoder, codebooks and codes to ``target``; skipped when up to date."""
    key = tokenize_key(config, dataset)
    if is_current(target, KIND, key):
        log.info("tokenize: up to date (%s)", target)
        return target
    space = TextSpace.fit(config, dataset)
    text, enhanced = space.item_vectors(dataset.item_table)
    behaviour = behaviour_vectors(dataset.histories(TRAIN), dataset.n_items, config.seed)
    vectors = joint_vectors(enhanced, behaviour, config.semantic_ids.behaviour_share)
    settings = config.semantic_ids
    sizes, sub_codebooks, sub_size = default_sizes(dataset.n_items)
    sizes = settings.level_sizes or sizes
    sub_codebooks = sub_codebooks if settings.opq_subcodebooks is None else settings.opq_subcodebooks
    codebooks, codes = fit_codebooks(
        vectors, sizes, sub_codebooks, settings.opq_size or sub_size, config.seed, balance_last=settings.balance_last
    )
    popularity = dataset.item_counts(TRAIN)
    codes, collisions = resolve_collisions(codes, vectors, codebooks, popularity)
    report = quality_report(codes, vectors, codebooks, popularity)
    info = {"sizes": list(codebooks.sizes), "collisions_before": collisions.collisions_before, "collisions_after": collisions.collisions_after}
    with atomic_folder(target, KIND, key, info) as folder:
        space.save(folder)
        np.save(folder / "text.npy", text)
        np.save(folder / "codes.npy", codes.astype(np.int64))
        save_file({name: np.ascontiguousarray(value) for name, value in codebooks.to_arrays().items()}, folder / "codebooks.safetensors")
        write_json(folder / "report.json", report)
        plot_codebook_use(report, folder / "codebook_use.png")
    log.info("tokenize: codes %s, items sharing a code %d -> %d", info["sizes"], info["collisions_before"], info["collisions_after"])
    return target


@dataclass
class SemanticIds:
    """A tokenize folder, loaded."""

    space: TextSpace
    codebooks: Codebooks
    catalogue: Catalogue
    key: str

    @property
    def encoder(self) -> TextEncoder:
        return self.space.encoder

    def keywords_of(self, item_id: str) -> list[tuple[str, str]]:
        """(keyword, type) of an item: the words that explain its semantic ID."""
        return self.space.keywords_of(item_id)

    @classmethod
    def load(cls, folder: Path, cache: Path | None = None) -> SemanticIds:
        """Open a tokenize folder. ``cache``: where a slow text encoder keeps vectors of texts it has seen."""
        manifest = open_artifact(folder, KIND)
        codes = torch.from_numpy(np.load(folder / "codes.npy", allow_pickle=False))
        text = torch.from_numpy(np.load(folder / "text.npy", allow_pickle=False))
        codebooks = Codebooks.from_arrays(load_file(folder / "codebooks.safetensors"))
        return cls(TextSpace.load(folder, cache), codebooks, Catalogue(text, codes, build_trie(codes, codebooks.sizes)), manifest["key"])
