import json
from itertools import pairwise

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.semantic_ids.quantizer import (
    Codebooks,
    balanced_assignment,
    default_sizes,
    encode,
    fit_codebooks,
    reconstruct,
)
from genrec.semantic_ids.report import plot_codebook_use, quality_report


def clustered(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, d)) * 3
    return (centres[rng.integers(0, 20, n)] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    vectors = clustered(900, 24)
    return vectors, *fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3)


@pytest.mark.parametrize("n, k", [(100, 10), (103, 10), (7, 7), (9, 8), (64, 1)])
def test_balanced_assignment_keeps_the_bound_and_places_everyone(n, k):
    vectors = clustered(n, 6)
    assigned = balanced_assignment(vectors, vectors[:k])
    counts = np.bincount(assigned, minlength=k)
    assert assigned.min() >= 0 and counts.sum() == n
    assert counts.max() <= -(-n // k)


def test_balanced_assignment_is_nearest_where_there_is_room():
    centroids = np.array([[0.0], [10.0]], np.float32)
    vectors = np.array([[1.0], [9.0], [0.5], [11.0]], np.float32)
    assert balanced_assignment(vectors, centroids).tolist() == [0, 1, 0, 1]


def test_balanced_assignment_evicts_who_loses_least():
    centroids = np.array([[0.0], [10.0]], np.float32)
    vectors = np.array([[0.0], [4.0], [1.0], [2.0]], np.float32)
    assert balanced_assignment(vectors, centroids).tolist() == [0, 1, 0, 1]


def test_only_the_last_residual_level_is_balanced(fitted):
    vectors, _, codes = fitted
    assert np.bincount(codes[:, 2], minlength=8).max() <= -(-len(vectors) // 8)
    assert np.bincount(codes[:, 0], minlength=16).max() > -(-len(vectors) // 16)


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
    assert np.array_equal(encode(codebooks, vectors, balance_last=True), codes)
    unbalanced, codes = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3, balance_last=False)
    assert np.array_equal(encode(unbalanced, vectors), codes)


def test_every_level_lowers_the_reconstruction_error():
    vectors = clustered(900, 25)  # 25 is padded to 26 for two sub-codebooks
    codebooks, codes = fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=0, balance_last=False)
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


def test_without_opq():
    vectors = clustered(200, 8)
    codebooks, codes = fit_codebooks(vectors, (8, 4), 0, 0, seed=0)
    assert codes.shape == (200, 2) and codebooks.sizes == (8, 4)
    assert np.array_equal(encode(codebooks, vectors)[:, 0], codes[:, 0])
    assert reconstruct(codebooks, codes).shape == (200, 8)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("d", [1, 3, 16])
def test_tiny_catalogues(n, duplicates, d):
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


def test_sizes_beyond_the_catalogue_are_clamped(capfd):
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


def test_quality_report(fitted, tmp_path):
    vectors, codebooks, codes = fitted
    popularity = np.arange(len(vectors))
    report = quality_report(codes, vectors, codebooks, popularity)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert report["independent_coding_rate"] == pytest.approx((counts == 1).sum() / len(codes))
    assert report["distinct_prefixes"][1] == len(np.unique(codes[:, :2], axis=0))
    assert report["utilisation"]["CUR_L1L2"] == pytest.approx(report["distinct_prefixes"][1] / 128)
    assert report["gini"][2] < 0.02 < report["gini"][0]
    assert report["neighbours"]["first_level"] > report["neighbours"]["first_level_random"]
    assert json.loads(json.dumps(report)) == report
    plot_codebook_use(report, tmp_path / "use.png")
    assert (tmp_path / "use.png").stat().st_size > 1000


def test_report_counts_collisions_by_popularity():
    vectors = np.array([[0.0], [0.0], [5.0], [9.0]], np.float32)
    codebooks = Codebooks([np.array([[0.0], [5.0], [9.0], [20.0]], np.float32)])
    report = quality_report(np.array([[0], [0], [1], [2]]), vectors, codebooks, np.array([6, 2, 1, 1]))
    assert report["collisions"] == {"shared_items": 0.5, "weighted": 0.8, "popular": 1.0, "largest": 2}
    assert report["utilisation"] == {"CUR_L1": 0.75} and report["utilisation_reachable"] == {"CUR_L1": 0.75}
    assert report["reconstruction_error"] == [0.0]
    assert report["entropy_bits"] == [pytest.approx(1.5)]
    assert report["gini"] == [pytest.approx(0.375)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_report_of_tiny_catalogues(n, tmp_path):
    vectors = clustered(n, 4)
    codebooks, codes = fit_codebooks(vectors, *default_sizes(n), seed=0)
    report = quality_report(codes, vectors, codebooks, None)
    json.dumps(report, allow_nan=False)
    plot_codebook_use(report, tmp_path / "use.png")
