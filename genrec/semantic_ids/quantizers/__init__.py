"""All quantizers behind one call: vectors in, codebooks that encode new vectors and codes (n, L) out.

`rq-opq` (OneSearch's KHQE, the default), `rq-kmeans` (plain residual k-means), `rq-vae` (TIGER), `opq` (flat product
quantization, no hierarchy) and `random` (a control). All get the same number of levels and, as near as they can, the
same code size.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from genrec.config.schema import SemanticIdConfig
from genrec.semantic_ids.quantizers.balance import balanced_assignment
from genrec.semantic_ids.quantizers.codebooks import (
    Codebooks,
    decode,
    default_sizes,
    encode,
    reconstruct,
    reconstruction_error,
)
from genrec.semantic_ids.quantizers.kmeans import k_means, nearest
from genrec.semantic_ids.quantizers.residual import encode_balanced, fit_codebooks, fit_random
from genrec.semantic_ids.quantizers.rqvae import fit_rq_vae

__all__ = [
    "QUANTIZERS", "Codebooks", "Quantized", "balanced_assignment", "decode", "default_sizes", "encode",
    "encode_balanced",
    "fit_codebooks", "fit_quantizer", "fit_random", "fit_rq_vae", "k_means", "nearest", "reconstruct",
    "reconstruction_error",
]  # fmt: skip
QUANTIZERS = ("rq-opq", "rq-kmeans", "rq-vae", "opq", "random")
log = logging.getLogger(__name__)


@dataclass
class Quantized:
    """`codebooks`, the `codes` (n, L) int64 of the vectors they were fitted for, and `notes` for the manifest."""

    codebooks: Codebooks
    codes: np.ndarray
    notes: dict = field(default_factory=dict)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays; `from_arrays` reads them back."""
        return self.codebooks.to_arrays() | {"codes": self.codes, "notes": np.array(json.dumps(self.notes))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Quantized:
        """Inverse of `to_arrays`."""
        books = {name: array for name, array in arrays.items() if name not in ("codes", "notes")}
        return cls(Codebooks.from_arrays(books), arrays["codes"], json.loads(str(arrays["notes"])))


def fit_quantizer(vectors: np.ndarray, settings: SemanticIdConfig, seed: int) -> Quantized:
    """Fit the quantizer that `settings.quantizer` names to vectors (n, d), which may be a memory map.

    Sizes follow the number of vectors by `default_sizes` where the settings leave them open; a size beyond it is
    lowered to it, and the log says so. Raises UserError for vectors that are empty or not finite; zero vectors get the
    code nearest to the origin.
    """
    levels, n_sub, sub_size = _sizes(len(vectors), settings)
    flat = [*levels, *[sub_size] * n_sub]
    if settings.quantizer == "rq-vae":
        quantized = Quantized(*fit_rq_vae(vectors, flat, seed))
    elif settings.quantizer == "random":
        quantized = Quantized(*fit_random(vectors, flat, seed))
    else:
        if settings.quantizer == "rq-kmeans":
            levels, n_sub, sub_size = flat, 0, 0
        elif settings.quantizer == "opq":
            # sub-codebooks share one size: the power of two nearest to the geometric mean keeps the code size
            levels, n_sub, sub_size = [], len(flat), 2 ** round(sum(math.log2(size) for size in flat) / len(flat))
        is_paper = settings.quantizer == "rq-opq"
        quantized = Quantized(
            *fit_codebooks(vectors, levels, n_sub, sub_size, seed, balanced=is_paper, normalise=is_paper)
        )
    quantized.notes |= {"quantizer": settings.quantizer, "sizes": list(quantized.codebooks.sizes)}
    return quantized


def _sizes(n: int, settings: SemanticIdConfig) -> tuple[list[int], int, int]:
    default_levels, n_sub, sub_size = default_sizes(n)
    levels = list(settings.level_sizes or default_levels)
    n_sub = n_sub if settings.opq_subcodebooks is None else settings.opq_subcodebooks
    if max([*levels, *[sub_size] * (n_sub > 0)]) > n:
        log.warning(
            "tokenize: %d items are fewer than the codes of a level (%s); that level gets one code per item at most",
            n,
            max(*levels, sub_size),
        )
    return levels, n_sub, sub_size
