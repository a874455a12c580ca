"""RQ-OPQ: codes, codebooks, balance, normalised residuals, streaming and bad input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.semantic_ids.quantizers import (
    Codebooks,
    default_sizes,
    encode,
    encode_balanced,
    fit_codebooks,
    reconstruct,
    reconstruction_error,
)
from genrec.semantic_ids.quantizers import codebooks as codebooks_module
from genrec.semantic_ids.quantizers.residual import sampled_rows


@pytest.fixture(scope="module")
def fitted(clustered):
    vectors = clustered(900, 24)
    return vectors, *fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3)


def test_same_seed_same_result(fitted):
    vectors, codebooks, codes = fitted
    again, codes_again = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3)
    assert np.array_equal(codes, codes_again)
    for name, array in codebooks.to_arrays().items():
        assert np.array_equal(array, again.to_arrays()[name]), name


def test_another_seed_another_result(fitted):
    vectors, codebooks, _ = fitted
    other, _ = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=4)
    assert not np.array_equal(codebooks.residual[0], other.residual[0])


def test_encode_repeats_the_training_assignment(fitted):
    vectors, codebooks, codes = fitted
    assert np.array_equal(encode(codebooks, vectors)[:, :2], codes[:, :2])
    assert np.array_equal(encode_balanced(codebooks, vectors), codes)
    unbalanced, codes = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3, balanced=False)
    assert np.array_equal(encode(unbalanced, vectors), codes)


def test_every_level_lowers_the_reconstruction_error(clustered):
    vectors = clustered(900, 25)  # 25 is padded to 26 for two sub-codebooks
    codebooks, codes = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=0, balanced=False)
    errors = [((vectors - reconstruct(codebooks, codes[:, :length])) ** 2).sum() for length in range(6)]
    assert codes.shape == (900, 5) and codebooks.sizes == (16, 8, 8, 8, 8)
    assert all(after < before for before, after in pairwise(errors))


def test_rotation_is_orthonormal_and_reconstruction_decodes_it(fitted):
    _, codebooks, codes = fitted
    rotation = codebooks.rotation
    assert np.allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-4)
    coarse = reconstruct(codebooks, codes[:, :3])
    words = np.concatenate([codebooks.sub_codebooks[sub, codes[:, 3 + sub]] for sub in range(2)], axis=1)
    assert np.allclose(reconstruct(codebooks, codes), coarse + words @ rotation, atol=1e-4)


def test_opq_codes_are_the_nearest_sub_codewords(fitted):
    vectors, codebooks, codes = fitted
    rotated = (vectors - reconstruct(codebooks, codes[:, :3])) @ codebooks.rotation.T
    for sub, words in enumerate(codebooks.sub_codebooks):
        part = rotated[:, sub * 12 : (sub + 1) * 12]
        nearest = ((part[:, None] - words[None]) ** 2).sum(2).argmin(1)
        assert (nearest == codes[:, 3 + sub]).mean() > 0.999  # ties by rounding aside


def test_without_opq(clustered):
    vectors = clustered(200, 8)
    codebooks, codes = fit_codebooks(vectors, (8, 4), 0, 0, seed=0)
    assert codes.shape == (200, 2) and codebooks.sizes == (8, 4)
    assert np.array_equal(encode(codebooks, vectors)[:, 0], codes[:, 0])
    assert reconstruct(codebooks, codes).shape == (200, 8)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("d", [1, 3, 16])
def test_tiny_catalogues(n, duplicates, d, clustered):
    vectors = clustered(n, d)
    vectors = np.repeat(vectors[:1], n, axis=0) if duplicates else vectors
    codebooks, codes = fit_codebooks(vectors, *default_sizes(n), seed=0)
    assert codes.shape == (n, 5) and codes.dtype == np.int64
    assert (codes >= 0).all() and (codes < codebooks.sizes).all()
    assert all(np.isfinite(array).all() for array in codebooks.to_arrays().values())
    fresh = encode(codebooks, vectors)
    assert fresh.shape == (n, 5) and np.isfinite(reconstruct(codebooks, fresh)).all()
    if duplicates:
        assert np.allclose(reconstruct(codebooks, fresh), vectors, atol=1e-2)


def test_a_sample_is_fitted_as_it_would_be_alone(clustered):
    vectors = clustered(300, 8)
    drawn = vectors[sampled_rows(300, 100, seed=0)]
    part, _ = fit_codebooks(vectors, (8, 4), 2, 4, seed=0, normalise=True, sample=100)
    whole, _ = fit_codebooks(drawn, (8, 4), 2, 4, seed=0, normalise=True)
    for name, values in whole.to_arrays().items():
        assert np.array_equal(part.to_arrays()[name], values), name


def test_sizes_beyond_the_catalogue_are_clamped(capfd, clustered):
    codebooks, _ = fit_codebooks(clustered(6, 4), (4096, 1024, 512), 2, 256, seed=0)
    assert codebooks.sizes == (6, 6, 6, 4, 4)
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""  # faiss prints warnings past Python


@pytest.mark.parametrize(
    "n, expected",
    [
        (1, ((1, 1, 1), 2, 1)),
        (5, ((4, 2, 2), 2, 2)),
        (1_682, ((64, 32, 16), 2, 16)),
        (12_101, ((256, 128, 64), 2, 64)),
        (20_000_000, ((4096, 1024, 512), 2, 256)),
    ],
)
def test_default_sizes(n, expected):
    assert default_sizes(n) == expected


def test_arrays_round_trip(fitted):
    vectors, codebooks, _ = fitted
    restored = Codebooks.from_arrays(codebooks.to_arrays())
    assert np.array_equal(encode(restored, vectors), encode(codebooks, vectors))
    with pytest.raises(UserError, match="rotation"):
        Codebooks.from_arrays({"residual.0": codebooks.residual[0]})


def test_files_round_trip_and_refuse_another_encoder(fitted, tmp_path):
    vectors, codebooks, _ = fitted
    codebooks.save(tmp_path / "codebooks.safetensors", "here")
    assert np.array_equal(
        encode(Codebooks.load(tmp_path / "codebooks.safetensors", "here"), vectors), encode(codebooks, vectors)
    )
    with pytest.raises(UserError, match="another encoder"):
        Codebooks.load(tmp_path / "codebooks.safetensors", "there")
    (tmp_path / "codebooks.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Codebooks.load(tmp_path / "codebooks.safetensors", "here")


@pytest.mark.parametrize(
    "vectors, sizes, opq, message",
    [
        (np.zeros((0, 4)), (2,), (0, 0), "shape"),
        (np.array([[1.0], [np.nan]]), (2,), (0, 0), "row 1"),
        (np.zeros((3, 4)), (), (0, 0), "level_sizes"),
        (np.zeros((3, 4)), (2,), (2, 48), "power of two"),
        (np.zeros((3, 4)), (2,), (-1, 2), "opq_subcodebooks"),
    ],
)
def test_user_errors(vectors, sizes, opq, message):
    with pytest.raises(UserError, match=message):
        fit_codebooks(vectors, sizes, *opq, seed=0)


def test_encode_rejects_another_dimension(fitted):
    with pytest.raises(UserError, match="dimensions"):
        encode(fitted[1], np.zeros((2, 5)))


@pytest.mark.parametrize("normalise", [False, True])
def test_the_last_level_is_balanced_below_each_prefix(normalise, clustered):
    vectors = clustered(700, 12)
    _, codes = fit_codebooks(vectors, (8, 4, 8), 2, 4, seed=0, normalise=normalise)
    parent = np.unique(codes[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
    table = np.zeros((parent.max() + 1, 8), int)
    np.add.at(table, (parent, codes[:, 2]), 1)
    assert (table.max(1) <= -(-table.sum(1) // 8)).all()
    free = fit_codebooks(vectors, (8, 4, 8), 2, 4, seed=0, balanced=False, normalise=normalise)[1]
    assert np.array_equal(free[:, :2], codes[:, :2]) and not np.array_equal(free, codes)


def test_normalised_residuals_spread_the_codes_and_stay_a_plain_sum():
    # half of the vectors lie next to their centroid: unless residuals are normalised these all get the same second code
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 10)) * 10
    reach = np.where(np.arange(800) % 2, 0.05, 2.0)[:, None]
    vectors = (centres[rng.integers(0, 8, 800)] + rng.normal(size=(800, 10)) * reach).astype(np.float32)
    largest = {}
    for normalise in (False, True):
        codebooks, codes = fit_codebooks(vectors, (8, 16), 2, 8, seed=0, balanced=False, normalise=normalise)
        largest[normalise] = np.bincount(codes[:, 1]).max()
        assert np.array_equal(encode(codebooks, vectors), codes)
        errors = reconstruction_error(codebooks, codes, vectors)
        assert all(after < before for before, after in pairwise(errors))
    assert largest[True] < 0.7 * largest[False]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_memory_map_read_in_blocks_gives_the_same_codes(tmp_path, monkeypatch, balanced, clustered):
    vectors = clustered(400, 12)
    np.save(tmp_path / "vectors.npy", vectors)
    whole = fit_codebooks(vectors, (8, 4, 4), 2, 4, seed=0, balanced=balanced, sample=150, normalise=True)
    monkeypatch.setattr(codebooks_module, "BLOCK_ROWS", 37)
    mapped = fit_codebooks(
        np.load(tmp_path / "vectors.npy", mmap_mode="r"),
        (8, 4, 4),
        2,
        4,
        seed=0,
        balanced=balanced,
        sample=150,
        normalise=True,
    )
    assert np.array_equal(whole[1], mapped[1]) and len(mapped[1]) == 400
    assert not np.array_equal(
        whole[0].residual[0], fit_codebooks(vectors, (8, 4, 4), 2, 4, seed=0)[0].residual[0]
    )  # a sample was fitted


def test_a_row_that_is_not_finite_is_named_in_any_block(monkeypatch, clustered):
    codebooks, _ = fit_codebooks(clustered(50, 4), (4,), 0, 0, seed=0)
    monkeypatch.setattr(codebooks_module, "BLOCK_ROWS", 8)
    vectors = clustered(50, 4)
    vectors[33, 2] = np.inf
    with pytest.raises(UserError, match="row 33 is not finite"):
        encode(codebooks, vectors)
