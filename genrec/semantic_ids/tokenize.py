"""The tokenize stage: text vectors, co-consumption vectors, codebooks, codes, collisions, quality report."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from genrec.artifacts.checkpoint import StageCheckpoint
from genrec.artifacts.folders import atomic_folder, fingerprint, is_current, write_json
from genrec.config.load import to_dict
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, Dataset
from genrec.errors import UserError
from genrec.memory import return_memory
from genrec.semantic_ids.collisions import resolve_collisions
from genrec.semantic_ids.drift import drift_baseline
from genrec.semantic_ids.item_vectors import TEXT, item_vectors
from genrec.semantic_ids.prefixes import prefix_ids
from genrec.semantic_ids.quantizers import Codebooks, Quantized, encode, fit_quantizer
from genrec.semantic_ids.report import prefix_agreement, quality_report, summary
from genrec.semantic_ids.space import BehaviourSpace, ItemSpace
from genrec.semantic_ids.text_space import ITEM_KEYWORDS, TextSpace
from genrec.text.encoder import encoder_key, item_texts

log = logging.getLogger(__name__)
KIND = "semantic-ids"
TOKENIZE_VERSION = 7
QUERY_PAIRS = 10_000  # query-item pairs the report reads at most


def tokenize_key(config: Config, dataset: Dataset) -> str:
    """The fingerprint of everything the semantic IDs depend on."""
    return fingerprint(
        TOKENIZE_VERSION, dataset.manifest["key"], encoder_key(config.text), to_dict(config.semantic_ids), config.seed
    )


def tokenize(config: Config, dataset: Dataset, target: Path, words: TextSpace | None = None) -> Path:
    """Write text encoder, codebooks, codes, report and figures to ``target``; skipped when up to date.

    ``words``: the text space where the caller has already fitted it to this dataset under the same settings.
    """
    key = tokenize_key(config, dataset)
    if is_current(target, KIND, key):
        log.info("tokenize: up to date (%s)", target)
        return target
    info: dict[str, Any] = {}
    checkpoint = StageCheckpoint(target, key)
    with atomic_folder(target, KIND, key, info) as folder, TemporaryDirectory(dir=folder) as scratch:
        _write(config, dataset, words, folder, Path(scratch), checkpoint, info)
    checkpoint.clear()
    return target


def _write(
    config: Config,
    dataset: Dataset,
    words: TextSpace | None,
    folder: Path,
    scratch: Path,
    checkpoint: StageCheckpoint,
    info: dict[str, Any],
) -> None:
    """Everything of the folder. ``scratch``: a folder on the same disk for vectors that are not kept.

    ``checkpoint`` keeps the codebooks, which take longest, should the stage be stopped.
    """
    from genrec.semantic_ids.figures import plot_codebook_use, plot_prefixes, plot_tree

    settings = config.semantic_ids
    words = words or TextSpace.fit(config, dataset)
    words.save(folder)
    words = replace(words, item_keywords=words.item_keywords.clear())  # from here on they are read from the folder
    behaviour = BehaviourSpace(dataset.histories(TRAIN), dataset.n_items, config.seed)
    tables = item_vectors(dataset.item_table, words, behaviour, settings.behaviour_share, scratch)
    del behaviour
    return_memory()  # of keywords and counts, before the codebooks take most
    space, vectors = tables.space, tables.joint
    without = _without_vector(vectors)
    quantized = Quantized.from_arrays(
        checkpoint.part("codebooks", lambda: fit_quantizer(vectors, settings, config.seed).to_arrays())
    )
    popularity = dataset.item_counts(TRAIN)
    codes, resolution = _resolved(quantized, vectors, popularity)
    codebooks = quantized.codebooks
    report = quality_report(codes, vectors, codebooks, popularity) | {
        "quantizer": quantized.notes,
        "collision_resolution": resolution,
        "items_without_vector": without,
        "queries": query_agreement(dataset, words, space, codebooks, codes),
        "tree": _tree(codes, dataset.item_table, replace(words, item_keywords=pl.read_parquet(folder / ITEM_KEYWORDS))),
    }
    info |= quantized.notes | {
        "collisions_before": resolution["collisions_before"],
        "collisions_after": resolution["collisions_after"],
        "independent_coding_rate": report["independent_coding_rate"],
        "items_without_vector": without,
    }
    (scratch / TEXT).rename(folder / TEXT)
    np.save(folder / "codes.npy", codes.astype(np.int32))
    codebooks.save(folder / "codebooks.safetensors", checkpoint.key)
    save_file(space.to_arrays(), folder / "space.safetensors")
    write_json(folder / "drift.json", drift_baseline(codebooks, tables.without_behaviour, codes))
    write_json(folder / "report.json", report)
    plot_codebook_use(report, folder / "codebook_use.png")
    plot_prefixes(report, folder / "prefixes.png")
    plot_tree(report["tree"], folder / "tree.png", report["distinct_prefixes"][0])
    log.info("tokenize: %s, codes %s; %s", settings.quantizer, info["sizes"], summary(report))


def _tree(codes: np.ndarray, items: pl.DataFrame, words: TextSpace) -> list[dict[str, Any]]:
    """See ``code_tree``."""
    from genrec.semantic_ids.figures import code_tree

    return code_tree(codes, lambda rows: item_texts(items[rows.tolist()]), words.names_of(items["item_id"]))


def _without_vector(vectors: np.ndarray) -> int:
    """How many vectors are zero. They get the code nearest to the origin. ``UserError`` where all are."""
    without = int((~vectors.any(1)).sum())
    if without == len(vectors):
        raise UserError(
            "tokenize: no item has words or co-consumption, so all vectors are zero; give items a title or text, "
            "or set semantic_ids.behaviour_share above 0"
        )
    if without:
        log.warning(
            "tokenize: %d of %d items have neither known words nor events; they share the code of the zero vector",
            without,
            len(vectors),
        )
    return without


def _resolved(quantized: Quantized, vectors: np.ndarray, popularity: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Codes after collision resolution and its report, with the independent coding rate before."""
    leaf = prefix_ids(quantized.codes)[1][:, -1]
    before = {"independent_coding_rate_before": float((np.bincount(leaf)[leaf] == 1).mean())}
    codes, report = resolve_collisions(quantized.codes, vectors, quantized.codebooks, popularity)
    return codes, asdict(report) | before


def query_agreement(
    dataset: Dataset, words: TextSpace, space: ItemSpace, codebooks: Codebooks, codes: np.ndarray
) -> dict[str, Any] | None:
    """How often a training query's code starts as its item's code does; None where the data have no queries.

    At most 10,000 pairs, drawn by a fixed seed. ``kind`` is "synthetic" where the queries were made from the items;
    ``without_known_words`` is the fraction of pairs whose query has no vector; they are left out.
    """
    events = np.flatnonzero((np.asarray(dataset.queries) >= 0) & (np.asarray(dataset.split) == TRAIN))
    if not len(events):
        return None
    events = np.sort(np.random.default_rng(0).permutation(events)[:QUERY_PAIRS])
    query_ids, at = np.unique(np.asarray(dataset.queries[events]), return_inverse=True)
    text, enhanced = words.query_vectors([dataset.query_texts[query] for query in query_ids])
    known = np.asarray(text.any(1))[at]
    kind = "synthetic" if dataset.info["synthetic_queries"] else "logged"
    result = {"kind": kind, "pairs": int(known.sum()), "without_known_words": float(1 - known.mean())}
    if not known.any():
        return None
    query_codes = encode(codebooks, space.vectors(enhanced))[at[known]]
    return result | prefix_agreement(query_codes, codes[np.asarray(dataset.items[events])[known]])
