"""Fitting and loading text encoders.

Encoders: ``tfidf`` (genrec/text/tfidf.py, no download), ``hf`` and ``minilm`` (genrec/text/transformer.py).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from genrec.artifacts.folders import read_json
from genrec.config.schema import TextConfig
from genrec.errors import UserError
from genrec.text.encoder import DESCRIPTION, TextEncoder, heads_and_bodies

MIN_TEXTS = 2  # that contain a term of TF-IDF
CHARACTER_WEIGHT = 0.5  # of character n-grams against words, for typos and model numbers


def fit_encoder(config: TextConfig, items: pl.DataFrame, seed: int, cache: Path | None = None) -> TextEncoder:
    """The encoder of a config.

    TF-IDF is fitted on the ``items``, a table with their columns; the other encoders are pretrained.
    """
    if config.encoder == "tfidf":
        from genrec.text.tfidf import TfidfEncoder

        heads, bodies = heads_and_bodies(items)
        return TfidfEncoder.fit(heads, config.dim, MIN_TEXTS, seed, CHARACTER_WEIGHT, bodies=bodies)
    from genrec.text.transformer import TransformerEncoder

    return TransformerEncoder.open(config, cache)


def load_encoder(folder: Path, cache: Path | None = None) -> TextEncoder:
    """The encoder saved in ``folder``. ``cache``: a folder of vectors by content, for encoders that are slow.

    Raises ``UserError`` when files are missing, or when the model the texts were encoded with is missing or has
    changed.
    """
    description = read_json(folder / DESCRIPTION)
    kind = description.get("encoder")
    if kind == "tfidf":
        from genrec.text.tfidf import TfidfEncoder

        return TfidfEncoder.read(folder, description)
    if kind in ("hf", "minilm"):
        from genrec.text.transformer import TransformerEncoder

        return TransformerEncoder.read(description, folder, cache)
    raise UserError(f"{folder / DESCRIPTION}: encoder '{kind}' is unknown to this genrec; run genrec tokenize again")
