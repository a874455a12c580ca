"""The tokenize stage: text vectors, co-consumption vectors, codebooks, codes, collisions, quality report; and the living catalogue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file, save_file

from genrec.artifacts import atomic_folder, fingerprint, is_current, open_artifact, read_json, write_json
from genrec.config import to_dict
from genrec.config_schema import Config
from genrec.data.dataset import TRAIN, Dataset
from genrec.errors import UserError
from genrec.semantic_ids.catalogue import Catalogue
from genrec.semantic_ids.collisions import CollisionReport, resolve_collisions
from genrec.semantic_ids.drift import drift_baseline, drift_report
from genrec.semantic_ids.quantizers import Codebooks, Quantized, encode, fit_quantizer
from genrec.semantic_ids.query_codes import QueryCoder
from genrec.semantic_ids.report import prefix_agreement, quality_report, summary
from genrec.semantic_ids.space import ItemSpace, behaviour_vectors
from genrec.semantic_ids.text_space import TextSpace
from genrec.semantic_ids.trie import build_trie, prefix_ids
from genrec.semantic_ids.trie_growth import extend_trie
from genrec.text.encoder import encoder_key, item_texts

log = logging.getLogger(__name__)
KIND = "semantic-ids"
TOKENIZE_VERSION = 6
QUERY_PAIRS = 10_000  # query-item pairs the report reads at most
ITEM_COLUMNS = {"title": pl.String, "brand": pl.String, "category": pl.List(pl.String), "text": pl.String}
OTHER_COLUMNS = {"price": pl.Float64}  # read where it is there


def tokenize_key(config: Config, dataset: Dataset) -> str:
    """The fingerprint of everything the semantic IDs depend on."""
    return fingerprint(TOKENIZE_VERSION, dataset.manifest["key"], encoder_key(config.text), to_dict(config.semantic_ids), config.seed)


def tokenize(config: Config, dataset: Dataset, target: Path, words: TextSpace | None = None) -> Path:
    """Write text encoder, codebooks, codes, report and figures to ``target``; skipped when up to date.

    ``words``: the text space where the caller has already fitted it to this dataset under the same settings.
    """
    from genrec.semantic_ids.figures import (  # matplotlib is slow to import, and who only reads codes draws nothing
        code_tree,
        plot_codebook_use,
        plot_prefixes,
        plot_tree,
    )

    key = tokenize_key(config, dataset)
    if is_current(target, KIND, key):
        log.info("tokenize: up to date (%s)", target)
        return target
    settings = config.semantic_ids
    words = words or TextSpace.fit(config, dataset)
    text, enhanced = words.item_vectors(dataset.item_table)
    behaviour = behaviour_vectors(dataset.histories(TRAIN), dataset.n_items, config.seed)
    space = ItemSpace.fit(enhanced, behaviour, settings.behaviour_share)
    vectors = space.vectors(enhanced, behaviour)
    without = _without_vector(vectors)
    beside = space.vectors(words.query_vectors(_training_queries(dataset))[1]) if settings.fit_queries else None
    quantized = fit_quantizer(vectors, settings, config.seed, beside)
    popularity = dataset.item_counts(TRAIN)
    codes, resolution = _resolved(quantized, vectors, popularity, settings.resolve_collisions)
    codebooks = quantized.codebooks
    report = quality_report(codes, vectors, codebooks, popularity) | {
        "quantizer": quantized.notes,
        "collision_resolution": resolution,
        "items_without_vector": without,
        "queries": query_agreement(dataset, words, space, codebooks, codes),
        "tree": code_tree(codes, item_texts(dataset.item_table), words.names_of(dataset.item_table["item_id"])),
    }
    info = quantized.notes | {
        "collisions_before": resolution["collisions_before"],
        "collisions_after": resolution["collisions_after"],
        "independent_coding_rate": report["independent_coding_rate"],
        "items_without_vector": without,
    }
    with atomic_folder(target, KIND, key, info) as folder:
        words.save(folder)
        np.save(folder / "text.npy", text)
        np.save(folder / "codes.npy", codes.astype(np.int64))
        codebooks.save(folder / "codebooks.safetensors", key)
        save_file(space.to_arrays(), folder / "space.safetensors")
        write_json(folder / "drift.json", drift_baseline(codebooks, space.vectors(enhanced), codes))
        write_json(folder / "report.json", report)
        plot_codebook_use(report, folder / "codebook_use.png")
        plot_prefixes(report, folder / "prefixes.png")
        plot_tree(report["tree"], folder / "tree.png", report["distinct_prefixes"][0])
    log.info("tokenize: %s, codes %s; %s", settings.quantizer, info["sizes"], summary(report))
    return target


def _without_vector(vectors: np.ndarray) -> int:
    """How many vectors are zero. They get the code nearest to the origin. ``UserError`` where all are."""
    without = int((~vectors.any(1)).sum())
    if without == len(vectors):
        raise UserError(
            "tokenize: no item has words or co-consumption, so all vectors are zero; give items a title or text, "
            "or set semantic_ids.behaviour_share above 0"
        )
    if without:
        log.warning("tokenize: %d of %d items have neither known words nor events; they share the code of the zero vector", without, len(vectors))
    return without


def _resolved(quantized: Quantized, vectors: np.ndarray, popularity: np.ndarray, resolve: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Codes after collisions, and what that did, with the independent coding rate before."""
    leaf = prefix_ids(quantized.codes)[1][:, -1]
    before = {"independent_coding_rate_before": float((np.bincount(leaf)[leaf] == 1).mean())}
    if resolve:
        codes, report = resolve_collisions(quantized.codes, vectors, quantized.codebooks, popularity)
        return codes, asdict(report) | before
    collisions = len(leaf) - int(leaf.max()) - 1
    return quantized.codes, asdict(CollisionReport(len(leaf), collisions, collisions, 0, 0.0)) | before


def _training_queries(dataset: Dataset) -> list[str]:
    """The distinct queries of training events. ``UserError`` where there are none."""
    asked = np.unique(np.asarray(dataset.queries)[np.asarray(dataset.split) == TRAIN])
    texts = [dataset.query_texts[query] for query in asked[asked >= 0]]
    if not texts:
        raise UserError("semantic_ids.fit_queries: the training events have no queries; set it to false, or queries.synthetic")
    return texts


def query_agreement(dataset: Dataset, words: TextSpace, space: ItemSpace, codebooks: Codebooks, codes: np.ndarray) -> dict[str, Any] | None:
    """How often a training query's code starts as its item's code does; None where the data have no queries.

    At most 10,000 pairs, drawn by a fixed seed. ``kind`` is "synthetic" where the queries were made from the items;
    ``without_known_words`` is the share of pairs whose query has no vector, they are left out.
    """
    events = np.flatnonzero((np.asarray(dataset.queries) >= 0) & (np.asarray(dataset.split) == TRAIN))
    if not len(events):
        return None
    events = np.sort(np.random.default_rng(0).permutation(events)[:QUERY_PAIRS])
    asked, at = np.unique(np.asarray(dataset.queries[events]), return_inverse=True)
    text, enhanced = words.query_vectors([dataset.query_texts[query] for query in asked])
    known = text.any(1)[at]
    kind = "synthetic" if dataset.info["synthetic_queries"] else "logged"
    result = {"kind": kind, "pairs": int(known.sum()), "without_known_words": float(1 - known.mean())}
    if not known.any():
        return None
    query_codes = encode(codebooks, space.vectors(enhanced))[at[known]]
    return result | prefix_agreement(query_codes, codes[np.asarray(dataset.items[events])[known]])


@dataclass
class NewCodes:
    """Codes (m, L) int64 of new items or queries, before collisions; ``text`` (m, text_dim) and ``vectors`` (m, d) behind them.

    ``known`` (m,) bool: the text has a word the encoder knows. The others have the code of the zero vector, which says nothing.
    """

    codes: np.ndarray
    text: np.ndarray
    vectors: np.ndarray
    known: np.ndarray


@dataclass
class Appended:
    """A catalogue that grew: ``ids`` with the new items after the old ones, ``node_map`` (old n_nodes,) the new id of every old trie
    node (for tables kept per node), and what became of collisions among the new items."""

    ids: SemanticIds
    node_map: torch.Tensor
    collisions: CollisionReport


@dataclass
class SemanticIds:
    """A tokenize folder, loaded."""

    words: TextSpace
    codebooks: Codebooks
    catalogue: Catalogue
    key: str
    space: ItemSpace
    baseline: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder(self) -> QueryCoder:
        """The text encoder, which also gives queries their codes."""
        return QueryCoder(self.words, self.space, self.codebooks)

    def keywords_of(self, item_id: str) -> list[tuple[str, str]]:
        """(keyword, type) of an item: the words that explain its semantic ID."""
        return self.words.keywords_of(item_id)

    @classmethod
    def load(cls, folder: Path, cache: Path | None = None) -> SemanticIds:
        """Open a tokenize folder. ``cache``: where a slow text encoder keeps vectors of texts it has seen.

        Raises ``UserError`` where the folder is not whole, or a codebook belongs to another encoder's vectors.
        """
        manifest = open_artifact(folder, KIND)
        codes = torch.from_numpy(np.load(folder / "codes.npy", allow_pickle=False))
        text = torch.from_numpy(np.load(folder / "text.npy", allow_pickle=False))
        codebooks = Codebooks.load(folder / "codebooks.safetensors", manifest["key"])
        space = ItemSpace.from_arrays(load_file(folder / "space.safetensors"))
        catalogue = Catalogue(text, codes, build_trie(codes, codebooks.sizes))
        return cls(TextSpace.load(folder, cache), codebooks, catalogue, manifest["key"], space, read_json(folder / "drift.json"))

    def encode_new(self, items: pl.DataFrame | Sequence[str]) -> NewCodes:
        """Codes of new items (a table with title, brand, category, text, whichever it has) or of texts such as queries.

        The codebooks stay as they are. Co-consumption, which nothing new has, is predicted from the text.
        """
        if not len(items):
            empty = np.zeros((0, len(self.codebooks.sizes)), np.int64)
            text, vectors = np.zeros((0, self.encoder.dim), np.float32), np.zeros((0, self.codebooks.dimension), np.float32)
            return NewCodes(empty, text, vectors, np.zeros(0, bool))
        new = isinstance(items, pl.DataFrame)
        text, enhanced = self.words.item_vectors(_item_columns(items)) if new else self.words.query_vectors(list(items))
        vectors = self.space.vectors(enhanced)
        return NewCodes(encode(self.codebooks, vectors), text, vectors, text.any(1))

    def append(self, items: pl.DataFrame | Sequence[str]) -> Appended:
        """The catalogue with these items after the old ones, whose codes stay as they are.

        A new item whose code is taken moves to the nearest free one with the same first L - 2 codes; where none is free it shares.
        Earlier rows choose first. Nothing on disk changes.
        """
        new, old = self.encode_new(items), self.catalogue
        codes = np.concatenate([old.codes.numpy(), new.codes])
        # the old vectors decide nothing, as old rows do not move
        vectors = np.concatenate([np.zeros((old.n_items, self.codebooks.dimension), np.float32), new.vectors])
        codes, report = resolve_collisions(codes, vectors, self.codebooks, fixed=old.n_items)
        trie, node_map = extend_trie(old.trie, torch.from_numpy(codes[old.n_items :]))
        catalogue = Catalogue(torch.cat([old.text, torch.from_numpy(new.text)]), torch.from_numpy(codes), trie)
        return Appended(replace(self, catalogue=catalogue), node_map, report)

    def drift_report(self, items: pl.DataFrame | Sequence[str]) -> dict[str, Any]:
        """Do the codebooks still fit these new items? See ``genrec.semantic_ids.drift``; ``retokenize`` is the answer.

        Items already appended count as growth only: give those that came since the codebooks were fitted.
        """
        new = self.encode_new(items)
        return drift_report(self.codebooks, self.baseline, self.catalogue.codes.numpy(), new.codes, new.vectors) | {
            "without_known_words": float(1 - new.known.mean()) if len(new.known) else 0.0
        }


def _item_columns(items: pl.DataFrame) -> pl.DataFrame:
    """The columns that texts are made of, null where the table has none; a category may be one string."""
    if not set(items.columns) & set(ITEM_COLUMNS):
        raise UserError(f"new items have columns {', '.join(items.columns)}; expected at least one of {', '.join(ITEM_COLUMNS)}")
    columns = []
    for name, kind in ITEM_COLUMNS.items():
        column = pl.col(name) if name in items.columns else pl.lit(None, dtype=kind)
        if name == "category" and name in items.columns and items.schema[name] == pl.String:
            column = pl.concat_list(column)
        columns.append(column.cast(kind).alias(name))
    columns += [pl.lit(None, dtype=kind).alias(name) for name, kind in OTHER_COLUMNS.items() if name not in items.columns]
    return items.with_columns(columns)


def read_items(path: Path) -> pl.DataFrame:
    """New items from a Parquet, CSV or JSON-lines file. Raises ``UserError`` where it is missing or none of these."""
    readers = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson}
    if not path.is_file():
        raise UserError(f"items file not found: {path}")
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a file that ends in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
