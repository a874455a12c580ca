"""Fixed codebooks of a catalogue: vectors to codes and back, for every quantizer, in blocks of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genrec.errors import UserError
from genrec.semantic_ids.quantizers.kmeans import nearest

BLOCK_ROWS = 1 << 16  # vectors encoded at once: 64 MB at width 256
Layers = list[tuple[np.ndarray, np.ndarray]]  # of a small network: weight (out, in) and bias (out,)


def _none(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@dataclass
class Codebooks:
    """Fixed codebooks of one catalogue; plain arrays only.

    `residual`: one float32 array (k_l, d) per residual level. `rotation` (d_pad, d_pad), orthonormal, maps a residual x
    to `rotation @ x`; `sub_codebooks` (n_sub, k_sub, d_pad / n_sub) quantize its slices. d_pad is d rounded up to a
    multiple of n_sub. Without OPQ both have n_sub = 0 rows: shapes (0, 0) and (0, 0, 0).

    `scales` (L,): residuals are brought to length 1 before every level but the first, and level l's words are
    multiplied by scales[l] in a reconstruction, so that it stays a plain sum; empty where residuals keep their length.
    `encoder` and `decoder`: the networks of an RQ-VAE around its latent space of d dimensions, empty elsewhere.
    `hash_seed`: codes are a hash of the vector (the random control), -1 elsewhere. `width`: dimensions of the vectors
    that are encoded (0: d).
    """

    residual: list[np.ndarray]
    rotation: np.ndarray = field(default_factory=lambda: _none(0, 0))
    sub_codebooks: np.ndarray = field(default_factory=lambda: _none(0, 0, 0))
    scales: np.ndarray = field(default_factory=lambda: _none(0))
    encoder: Layers = field(default_factory=list)
    decoder: Layers = field(default_factory=list)
    hash_seed: int = -1
    width: int = 0

    @property
    def dimension(self) -> int:
        """Dimensions of the vectors that `encode` takes."""
        return self.width or self.residual[0].shape[1]

    @property
    def latent_dimension(self) -> int:
        """Dimensions of the space that is quantized: `dimension`, except for an RQ-VAE."""
        return self.encoder[-1][0].shape[0] if self.encoder else self.dimension

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of every level, residual levels first: the vocabulary sizes of a semantic ID."""
        return tuple(len(level) for level in self.residual) + (self.sub_codebooks.shape[1],) * len(self.sub_codebooks)

    def code_vectors(self) -> list[np.ndarray]:
        """One (k_l, latent_dimension) array per level whose chosen rows add up to the reconstruction.

        A sub-codeword is laid into its slice, zeros elsewhere, and rotated back.
        """
        vectors = list(self.residual)
        sub_width = self.sub_codebooks.shape[2]
        for index, words in enumerate(self.sub_codebooks):
            rows = self.rotation[index * sub_width : (index + 1) * sub_width, : self.latent_dimension]
            vectors.append(words @ rows)
        if len(self.scales):
            vectors = [table * scale for table, scale in zip(vectors, self.scales, strict=True)]
        return vectors

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, dimension) in the space that is quantized: (n, latent_dimension).

        The same array except for an RQ-VAE.
        """
        return _network(self.encoder, vectors)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays, ready for safetensors; `from_arrays` reads them back."""
        arrays = {f"residual.{level}": centroids for level, centroids in enumerate(self.residual)}
        for name, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for index, (weight, bias) in enumerate(layers):
                arrays |= {f"{name}.{index}.weight": weight, f"{name}.{index}.bias": bias}
        plain = {"rotation": self.rotation, "sub_codebooks": self.sub_codebooks, "scales": self.scales}
        return (
            arrays
            | plain
            | {"hash_seed": np.array([self.hash_seed], np.int64), "width": np.array([self.width], np.int64)}
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Codebooks:
        """Inverse of `to_arrays`. Raises UserError where an array is missing."""
        n_levels = sum(name.startswith("residual.") for name in arrays)
        parts = ("rotation", "sub_codebooks", "scales", "hash_seed", "width")
        missing = [name for name in (*(f"residual.{level}" for level in range(n_levels)), *parts) if name not in arrays]
        if missing:
            raise UserError(
                f"codebooks: missing {', '.join(missing)}; expected the arrays that Codebooks.to_arrays writes; "
                f"tokenize again"
            )
        networks = {
            name: [
                (arrays[f"{name}.{index}.weight"], arrays[f"{name}.{index}.bias"])
                for index in range(_count(arrays, name))
            ]
            for name in ("encoder", "decoder")
        }
        return cls(
            [arrays[f"residual.{level}"] for level in range(n_levels)],
            arrays["rotation"],
            arrays["sub_codebooks"],
            arrays["scales"],
            networks["encoder"],
            networks["decoder"],
            int(arrays["hash_seed"][0]),
            int(arrays["width"][0]),
        )

    def save(self, path: Path, space: str) -> None:
        """Write a safetensors file. `space` names the vectors the codebooks belong to; `load` refuses another one."""
        save_file(
            {name: np.ascontiguousarray(value) for name, value in self.to_arrays().items()}, path, {"space": space}
        )

    @classmethod
    def load(cls, path: Path, space: str | None = None) -> Codebooks:
        """Read the file that `save` wrote.

        Raises UserError where it is broken or belongs to another vector space than `space`.
        """
        try:
            with safe_open(path, "numpy") as stream:
                actual = (stream.metadata() or {}).get("space")
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); tokenize again") from error
        if space is not None and actual != space:
            raise UserError(
                f"{path} belongs to the vectors {actual}, not to {space}: a codebook of another encoder; tokenize again"
            )
        return cls.from_arrays(arrays)


def _count(arrays: dict[str, np.ndarray], name: str) -> int:
    return sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in arrays)


def encode(codebooks: Codebooks, vectors: np.ndarray) -> np.ndarray:
    """Codes (n, L) int64 of vectors (n, d) under fixed codebooks: nearest centroid level by level, then the OPQ codes.

    This is how new items and queries get their codes; no capacity holds here. `vectors` may be a memory map of any size
    and float type: blocks of it are read in turn. Raises UserError for non-finite vectors or another dimension.
    """
    if vectors.ndim != 2 or vectors.shape[1] != codebooks.dimension:
        actual = vectors.shape[1] if vectors.ndim == 2 else vectors.shape
        raise UserError(
            f"encode: vectors have {actual} dimensions, the codebooks {codebooks.dimension}; use the text encoder of "
            f"the fit"
        )
    codes = np.empty((len(vectors), len(codebooks.sizes)), np.int64)
    for rows, block in blocks(vectors):
        if codebooks.hash_seed >= 0:
            codes[rows] = hashed_codes(block, codebooks.sizes, codebooks.hash_seed)
            continue
        residual = codebooks.project(block)
        for level, table in enumerate(codebooks.residual):
            residual = level_input(codebooks, residual, level)
            codes[rows, level] = nearest(residual, table)[0]
            residual = residual - table[codes[rows, level]]
        codes[rows, len(codebooks.residual) :] = opq_codes(codebooks, residual)
    return codes


def level_input(codebooks: Codebooks, residual: np.ndarray, level: int) -> np.ndarray:
    """The residual that level `level` quantizes, normalised where the codebooks say so."""
    return unit(residual) if level and len(codebooks.scales) else residual


def opq_codes(codebooks: Codebooks, residual: np.ndarray) -> np.ndarray:
    """Codes (n, n_sub) int64 of the remainder (n, d) of the residual levels."""
    n_sub, _, width = codebooks.sub_codebooks.shape
    codes = np.empty((len(residual), n_sub), np.int64)
    if n_sub:
        residual = level_input(codebooks, residual, len(codebooks.residual))
        rotated = padded(residual, n_sub * width) @ codebooks.rotation.T
        for sub, (part, words) in enumerate(
            zip(np.split(rotated, n_sub, axis=1), codebooks.sub_codebooks, strict=True)
        ):
            codes[:, sub] = nearest(np.ascontiguousarray(part), words)[0]
    return codes


def reconstruct(codebooks: Codebooks, codes: np.ndarray) -> np.ndarray:
    """Vectors (n, latent_dimension) float32 of codes (n, L'); L' < L reconstructs from a prefix, coarser."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] > len(codebooks.sizes):
        raise UserError(f"reconstruct: codes have shape {codes.shape}; expected (n, at most {len(codebooks.sizes)})")
    total = np.zeros((len(codes), codebooks.latent_dimension), np.float32)
    for level, table in enumerate(codebooks.code_vectors()[: codes.shape[1]]):
        total += table[codes[:, level]]
    return total


def decode(codebooks: Codebooks, codes: np.ndarray) -> np.ndarray:
    """Vectors (n, dimension) float32 that codes (n, L') stand for: `reconstruct`, and for an RQ-VAE its decoder."""
    return _network(codebooks.decoder, reconstruct(codebooks, codes))


def reconstruction_error(codebooks: Codebooks, codes: np.ndarray, vectors: np.ndarray) -> list[float]:
    """Per prefix length 1 to L: sum |x - x'|^2 / sum |x|^2, read in blocks."""
    lost, total = np.zeros(codes.shape[1]), 0.0
    for rows, block in blocks(vectors):
        total += float((block.astype(np.float64) ** 2).sum())
        for length in range(1, codes.shape[1] + 1):
            lost[length - 1] += float(((block - decode(codebooks, codes[rows, :length])) ** 2).sum(dtype=np.float64))
    return (lost / max(total, float(np.finfo(np.float32).tiny))).tolist()


def hashed_codes(vectors: np.ndarray, sizes: tuple[int, ...], seed: int) -> np.ndarray:
    """Codes (n, L) int64 from a hash of each vector's bytes: equal vectors get equal codes, all else is chance."""
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng([seed, len(sizes)]).integers(
        0, 2**63, (words.shape[1], len(sizes)), dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    mixed = words @ factors  # wraps modulo 2^64, as a multiplicative hash should
    return ((mixed >> np.uint64(33)) % np.asarray(sizes, np.uint64)).astype(np.int64)


def blocks(vectors: np.ndarray, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows and float32 content of consecutive blocks.

    Raises UserError for an empty array and for a row that is not finite.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(f"vectors have shape {vectors.shape}; expected (n, d) with n and d at least 1")
    size = size or BLOCK_ROWS
    for start in range(0, len(vectors), size):
        rows = slice(start, min(start + size, len(vectors)))
        block = np.ascontiguousarray(vectors[rows], np.float32)
        finite = np.isfinite(block).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise UserError(f"vectors: row {row} is not finite; expected real numbers; check the text encoder's output")
        yield rows, block


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9).astype(np.float32)


def padded(vectors: np.ndarray, width: int) -> np.ndarray:
    """Vectors (n, width), zero after their own columns, contiguous."""
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, width - vectors.shape[1]))))


def power_of_two_below(number: int) -> int:
    """The largest power of two that is at most `number`."""
    return 1 << (int(number).bit_length() - 1)


def default_sizes(n_items: int) -> tuple[tuple[int, ...], int, int]:
    """Residual level sizes, number of OPQ sub-codebooks and their size for a catalogue of `n_items`.

    Rule: the first level is the power of two nearest to 2 * sqrt(n), each further level has half as many codes, and the
    two OPQ sub-codebooks have as many as the last level. Upper limits are OneSearch's 4096-1024-512 + 2 x 256; the
    lower limit is 2; no size exceeds n. Raises UserError for an empty catalogue. Examples:

    - 1,682 items: 64-32-16 + 2 x 16
    - 12,000 items: 256-128-64 + 2 x 64
    - 1M items: 2048-1024-512 + 2 x 256
    - tens of millions: 4096-1024-512 + 2 x 256
    """
    if n_items < 1:
        raise UserError(f"default_sizes: the catalogue has {n_items} items; expected at least 1; check the items file")
    ceiling = power_of_two_below(n_items)
    first = 2 ** round(math.log2(2 * math.sqrt(n_items)))
    targets = (first, first // 2, first // 4)
    levels = tuple(min(max(size, 2), limit, ceiling) for size, limit in zip(targets, MAX_LEVEL_SIZES, strict=True))
    return levels, 2, min(levels[-1], MAX_OPQ_SIZE)


MAX_LEVEL_SIZES = (4096, 1024, 512)
MAX_OPQ_SIZE = 256


def _network(layers: Layers, vectors: np.ndarray) -> np.ndarray:
    for index, (weight, bias) in enumerate(layers):
        vectors = vectors @ weight.T + bias
        if index < len(layers) - 1:
            vectors = np.maximum(vectors, 0)
    return vectors
