"""Every quantizer behind the one call: codes, encoding of new vectors, files, bad input."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from genrec.config.schema import SemanticIdConfig
from genrec.errors import UserError
from genrec.semantic_ids.collisions import resolve_collisions
from genrec.semantic_ids.quantizers import QUANTIZERS, Codebooks, decode, encode, fit_quantizer, rqvae
from genrec.semantic_ids.report import quality_report

SETTINGS = {
    "level_sizes": [16, 8, 4],
    "opq_subcodebooks": 2,
}


@pytest.fixture(scope="module", params=QUANTIZERS)
def fitted(request, clustered):
    vectors = clustered(400, 12)
    return request.param, vectors, fit_quantizer(vectors, SemanticIdConfig(quantizer=request.param, **SETTINGS), seed=1)


def test_codes_and_sizes(fitted):
    name, _, quantized = fitted
    sizes = quantized.codebooks.sizes
    assert quantized.codes.shape == (400, 5) and quantized.codes.dtype == np.int64
    assert (quantized.codes >= 0).all() and (quantized.codes < sizes).all()
    # equal code size: 16 * 8 * 4 * 8 * 8 = 2^15; flat OPQ has one size for all levels
    assert np.log2(sizes).sum() == pytest.approx(15, abs=3) if name == "opq" else sizes == (16, 8, 4, 8, 8)
    assert quantized.notes["quantizer"] == name


def test_the_same_seed_gives_the_same_codes(fitted):
    name, vectors, quantized = fitted
    again = fit_quantizer(vectors, SemanticIdConfig(quantizer=name, **SETTINGS), seed=1)
    assert np.array_equal(again.codes, quantized.codes)


def test_encode_works_on_new_vectors_and_repeats_the_fit(fitted, clustered):
    name, vectors, quantized = fitted
    codes = encode(quantized.codebooks, vectors)
    levels = 2 if name == "rq-opq" else 5  # its third level is balanced over the catalogue
    assert np.array_equal(codes[:, :levels], quantized.codes[:, :levels])
    fresh = encode(quantized.codebooks, clustered(30, 12, seed=5))
    assert fresh.shape == (30, 5) and (fresh < quantized.codebooks.sizes).all()


def test_files_keep_everything(fitted, tmp_path):
    _, vectors, quantized = fitted
    quantized.codebooks.save(tmp_path / "codebooks.safetensors", "x")
    loaded = Codebooks.load(tmp_path / "codebooks.safetensors", "x")
    assert loaded.sizes == quantized.codebooks.sizes and loaded.dimension == 12
    assert np.array_equal(encode(loaded, vectors), encode(quantized.codebooks, vectors))
    assert np.array_equal(decode(loaded, quantized.codes), decode(quantized.codebooks, quantized.codes))


def test_only_the_control_has_codes_without_meaning(fitted):
    name, vectors, quantized = fitted
    report = quality_report(quantized.codes, vectors, quantized.codebooks)
    shared, random = (report["neighbours"][key][0] for key in ("shared", "random"))
    assert shared < 1.5 * random if name == "random" else shared > 3 * random
    assert decode(quantized.codebooks, quantized.codes).shape == vectors.shape
    bound = 1.0 if name == "random" else 0.6
    assert report["reconstruction_error"][-1] < bound


def test_collisions_are_resolved_for_all(fitted):
    _, vectors, quantized = fitted
    resolved, report = resolve_collisions(quantized.codes, vectors, quantized.codebooks)
    before = len(np.unique(quantized.codes, axis=0))
    assert len(np.unique(resolved, axis=0)) == 400 - report.collisions_after >= before


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("n", [1, 3])
def test_fewer_items_than_codes(name, n, caplog, clustered):
    with caplog.at_level(logging.WARNING):
        quantized = fit_quantizer(clustered(n, 5), SemanticIdConfig(quantizer=name, **SETTINGS), seed=0)
    assert quantized.codes.shape == (n, 5) and np.isfinite(decode(quantized.codebooks, quantized.codes)).all()
    assert any("fewer than the codes" in record.message for record in caplog.records)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zero_vectors_have_codes_and_nan_is_refused(name, clustered):
    vectors = clustered(60, 6)
    vectors[:5] = 0
    quantized = fit_quantizer(vectors, SemanticIdConfig(quantizer=name, **SETTINGS), seed=0)
    assert len(np.unique(encode(quantized.codebooks, vectors[:5]), axis=0)) == 1
    vectors[7, 1] = np.nan
    with pytest.raises(UserError, match="row 7 is not finite"):
        fit_quantizer(vectors, SemanticIdConfig(quantizer=name, **SETTINGS), seed=0)
    with pytest.raises(UserError, match="dimensions"):
        encode(quantized.codebooks, np.zeros((2, 9), np.float32))


def test_rq_vae_reports_collapse(monkeypatch, caplog):
    # two distinct vectors cannot use eight codes
    vectors = np.repeat(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32), 40, axis=0)
    with caplog.at_level(logging.WARNING):
        notes = fit_quantizer(vectors, SemanticIdConfig(quantizer="rq-vae", **SETTINGS), seed=0).notes
    assert notes["collapsed"] and notes["used_share"][0] == 2 / 16
    assert any("collapsed" in record.message for record in caplog.records)


def test_rq_vae_restarts_dead_codes():
    import torch

    level = rqvae._Level.start(np.array([[0.0], [50.0]], np.float32))
    residual = torch.tensor([[0.1], [0.2]])
    level.follow(residual, torch.tensor([0, 0]))
    assert level.restart_dead(residual, torch.Generator().manual_seed(0)) == 1
    assert level.words[1, 0] < 1  # it lies where the vectors are now
    assert level.restart_dead(residual, torch.Generator()) == 2  # the epoch's use is forgotten


def test_random_codes_differ_by_seed_and_agree_on_duplicates(clustered):
    vectors = np.repeat(clustered(20, 4), 2, axis=0)
    one, other = (
        fit_quantizer(vectors, SemanticIdConfig(quantizer="random", **SETTINGS), seed=seed).codes for seed in (0, 1)
    )
    assert np.array_equal(one[::2], one[1::2]) and not np.array_equal(one, other)
    assert len(np.unique(one[::2], axis=0)) == 20
