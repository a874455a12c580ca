"""The bundle: a trained run cut down to what answering needs, in one self-contained folder.

A bundle has the layout of a run folder (so the run's own code opens it) with one fit only, no logs, no test events,
and besides

* ``trie.safetensors``       the catalogue trie;
* ``indexes/``             indexes of dense retrieval, for a catalogue that needs them;
* ``programs/``              if asked for: ``torch.export`` programs (``genrec/inference/programs.py``);
* ``card.json``, ``README.md`` the model card: data, split, metrics, licence;
* ``manifest.json``          size and SHA-256 of every file, and a digest of itself.

Nothing in it is unpickled when it is opened: safetensors, JSON, Parquet, and ``.npy`` / ``.npz`` read with
``allow_pickle=False``.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file

from genrec.artifacts.folders import (
    MANIFEST,
    atomic_folder,
    fingerprint,
    open_artifact,
    read_json,
    verified_meanwhile,
    write_json,
)
from genrec.artifacts.stages import Stage, StageGraph
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import CatalogueTrie
from genrec.config.load import config_from_dict, to_dict
from genrec.config.schema import Config
from genrec.data.dataset import ARRAYS, VALID
from genrec.data.dataset import KIND as DATASET_KIND
from genrec.errors import UserError
from genrec.inference.card import card_text, model_card
from genrec.model.node_vectors import read_nodes
from genrec.model.packed import packed
from genrec.model.saved import IDS, NODES, RESOLVED
from genrec.model.saved import KIND as MODEL_KIND
from genrec.runs.run import FITTED, Run
from genrec.runs.stages import FEATURES_KIND, RERANKER_KIND
from genrec.semantic_ids.item_vectors import HALF_ITEMS
from genrec.semantic_ids.tokenize import KIND as IDS_KIND
from genrec.text.transformer import model_name

KIND = "bundle"
BUNDLE_FORMAT = 2
INDEXES = "indexes"
_LEFT_OUT = (".png", ".html", ".svg", "curves.json", MANIFEST)


class BundleRun(Run):
    """A bundle, seen as the run it was made from."""

    def __init__(self, folder: Path, config: Config, manifest: dict):
        super().__init__(folder, config)
        self.manifest = manifest

    @property
    def stages(self) -> StageGraph:
        """The parts of the bundle; its checksums hold them together, so any key is accepted."""
        manifests = [(path.parent.name, read_json(path)["kind"]) for path in self.folder.glob(f"*/{MANIFEST}")]
        return StageGraph(self.folder, [Stage(name, kind, lambda: None) for name, kind in manifests])

    @cached_property
    def ids(self) -> SemanticIds:
        """The semantic IDs, with the saved trie."""
        trie = CatalogueTrie.from_saved(load_file(self.folder / "trie.safetensors"))
        return SemanticIds.load(self.folder / "semantic_ids", trie=trie)

    @property
    def indexes(self) -> Path | None:
        """As ``Run.indexes``."""
        return self.folder / INDEXES

    def ranker(self, fitted_on: str | None = None, fused: bool = True):
        """As ``Run.ranker``, for the one fit the bundle holds."""
        held = self.manifest["info"]["fitted_on"]
        if fitted_on not in (None, held):
            raise UserError(
                f"--fitted-on: {self.folder} is a bundle of the model fitted on {held}, not on {fitted_on}; "
                "export another one"
            )
        return super().ranker(held, fused)


def is_bundle(folder: str | Path) -> bool:
    """Whether the folder says that it is a bundle; it may still be a broken one."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return False
    try:
        manifest = read_json(path)
    except UserError:
        return (Path(folder) / "trie.safetensors").is_file()
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


def open_run(folder: str | Path) -> Run:
    """A run folder or a bundle. Every byte of a bundle is checked.

    Raises ``UserError`` when the folder is neither, is not whole, was changed, or is a bundle of a newer format.
    """
    with opened_run(folder) as run:
        return run


@contextmanager
def opened_run(folder: str | Path) -> Iterator[Run]:
    """As ``open_run``; the bytes of a bundle are checked while the context lasts, at the latest at its end."""
    folder = Path(folder)
    if not is_bundle(folder):
        yield Run.open(folder)
        return
    info = read_json(folder / MANIFEST).get("info", {})
    version = info.get("bundle_format")
    if not isinstance(version, int) or version > BUNDLE_FORMAT:
        raise UserError(
            f"{folder} has bundle format {version}, this genrec reads up to {BUNDLE_FORMAT}; install a newer genrec, "
            "or export it again"
        )
    with verified_meanwhile(folder, KIND) as manifest:
        yield BundleRun(folder, Run.open(folder).config, manifest)


def export(
    run_folder: str | Path,
    output: str | Path,
    fitted_on: str | None = None,
    users: bool = True,
    licence: str | None = None,
    programs: bool = False,
) -> Path:
    """Write the bundle of a run to ``output`` (an older one is replaced as a whole).

    ``fitted_on``: ``train`` or ``train+valid``; by default the refit where there is one. ``users`` false leaves the
    people's histories out: histories then come with the requests or from the event store, and of the log only counts
    and the times of each item's events remain, without names. ``licence``: a line for the model card. ``programs``
    adds ``torch.export`` programs for other runtimes, which takes minutes. Raises ``UserError`` for an untrained
    run, another fit, or an output that is something else than a bundle.
    """
    output = Path(output)
    if is_bundle(run_folder):
        raise UserError(f"{run_folder} is a bundle already; export takes a run folder")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]) and not is_bundle(output):
        raise UserError(f"--output: {output} exists and is not a bundle; name another folder")
    run = Run.open(run_folder)
    fitted_on = fitted_on or run.default_fit()
    if fitted_on not in run.fitted:
        raise UserError(f"--fitted-on: '{fitted_on}' is not one of {', '.join(run.fitted)}, the fits of {run.folder}")
    model, table, _ = FITTED[fitted_on]
    sources = _source_keys(run, model)
    config = _without_paths(run.config)
    info = {"bundle_format": BUNDLE_FORMAT, "fitted_on": fitted_on, "users": users}
    with atomic_folder(output, KIND, fingerprint(BUNDLE_FORMAT, sources, fitted_on, users), info) as folder:
        write_json(folder / "config.json", to_dict(config))
        _pack(run, "semantic_ids", folder, more=run.ids.words.encoder.pack)
        _pack(run, model, folder, rewrite_config=True, more=lambda part: _pack_weights(run, part))
        _pack(run, "reranker", folder)
        with _part(run, "candidate_features", folder) as part:
            for name in (f"{table}.npz", "lexical.npz"):
                shutil.copy(run.folder / "candidate_features" / name, part)
        read = open_artifact(run.folder / model, MODEL_KIND)["info"].get("situation", [])
        _pack_dataset(run, folder, users, [field["name"] for field in read])
        save_file(run.ids.catalogue.trie.saved_tensors(), folder / "trie.safetensors")
        parity, generator = {}, run.ranker(fitted_on).generator
        generator.save_indexes(folder / INDEXES)
        if programs:
            from genrec.inference.programs import export_programs  # here: torch.export is slow to import

            parity = export_programs(generator, folder / "programs")
        card = model_card(
            run,
            fitted_on,
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            users,
            licence,
            parity,
        )
        write_json(folder / "card.json", card)
        (folder / "README.md").write_text(card_text(card))
    return output


def _source_keys(run: Run, model: str) -> dict[str, str]:
    """The keys of the artefacts that a bundle is made from, each current and whole to the last byte."""
    kinds = {
        "dataset": DATASET_KIND,
        "semantic_ids": IDS_KIND,
        model: MODEL_KIND,
        "candidate_features": FEATURES_KIND,
        "reranker": RERANKER_KIND,
    }
    stages = run.stages
    for name in kinds:
        stages.require(name)
    return {name: open_artifact(run.folder / name, kind, verify=True)["key"] for name, kind in kinds.items()}


def _without_paths(config: Config) -> Config:
    """The config without the paths of the machine it was trained on."""
    config = copy.deepcopy(config)
    config.output, config.data.path = "runs", None
    if config.text.model is not None:
        config.text.model = model_name(config.text.model)
    return config


def _part(run: Run, name: str, folder: Path):
    """A part of the bundle with the manifest of the run's part of the same name."""
    manifest = read_json(run.folder / name / MANIFEST)
    return atomic_folder(folder / name, manifest["kind"], manifest["key"], manifest["info"])


def _pack(
    run: Run, name: str, folder: Path, rewrite_config: bool = False, more: Callable[[Path], None] | None = None
) -> None:
    """Copy a part of the run, without pictures, curves and reports; ``more`` adds to it."""
    source = run.folder / name
    with _part(run, name, folder) as part:
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.name.endswith(_LEFT_OUT):
                target = part / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        if more is not None:
            more(part)
        if rewrite_config:
            for path in (part / "config.json", part / RESOLVED):
                written = config_from_dict(read_json(path), str(path))
                write_json(path, to_dict(_without_paths(written)))


def _pack_weights(run: Run, part: Path) -> None:
    """Write a model's weights in less space. Node vectors that no search can read are left out.

    These belong to nodes whose parent has a single leaf below: the rest of a path through it is certain. The tables of
    a catalogue whose text vectors are kept in half precision are written in it, too.
    """
    path, trie = part / "model.safetensors", run.ids.catalogue.trie
    weights = load_file(path)
    if len(weights.get(NODES, ())) == trie.n_nodes:
        read = read_nodes(trie)
        weights[NODES] = torch.zeros_like(weights[NODES]).index_copy_(0, read, weights[NODES][read])
    if run.dataset.n_items > HALF_ITEMS:
        weights |= {name: weights[name].half() for name in (IDS, NODES) if name in weights}
    save_file(packed(weights), path)


def _pack_dataset(run: Run, folder: Path, users: bool, attributes: list[str]) -> None:
    """The catalogue and, with ``users``, every user's events before the test split, and those ``attributes``.

    Query texts that none of these name are left out.
    """
    data = run.dataset
    keep = np.asarray(data.split) <= VALID if users else np.zeros(len(data.split), bool)
    offsets = (
        np.concatenate([[0], np.cumsum(keep)])[np.asarray(data.offsets)].astype(np.int64)
        if users
        else np.zeros(1, np.int64)
    )
    queries = np.asarray(data.queries)[keep]
    used, index = np.unique(queries[queries >= 0], return_inverse=True)
    remapped = np.full(len(queries), -1, queries.dtype)
    remapped[queries >= 0] = index
    arrays = {name: np.asarray(getattr(data, name))[keep] for name in ARRAYS if name not in ("offsets", "queries")}
    with _part(run, "dataset", folder) as part:
        for name, array in (arrays | {"offsets": offsets, "queries": remapped}).items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        data.item_table.write_parquet(part / "items.parquet")
        pl.DataFrame({"query": pl.Series(data.query_texts, dtype=pl.String)[used.astype(np.int64)]}).write_parquet(
            part / "queries.parquet"
        )
        table = data.users.select("user_id", *(name for name in attributes if name in data.users.columns))
        (table if users else table.clear()).write_parquet(part / "users.parquet")
        data.heldout_queries.clear().write_parquet(part / "heldout_queries.parquet")
