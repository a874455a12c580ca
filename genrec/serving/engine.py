"""The model behind the server: which bundle answers now, what was added to it, and how a new one takes its place."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from genrec.artifacts.folders import MANIFEST, read_json
from genrec.errors import UserError
from genrec.inference.bundle import is_bundle
from genrec.inference.recommender import Answer, Recommender
from genrec.inference.requests import RecommendationRequest
from genrec.inference.snapshot import AddedItemIds
from genrec.serving.settings import ServeSettings
from genrec.serving.store import Store, open_store


class Engine:
    """Holds one ``Recommender`` and replaces it as a whole. Items added or removed since the export are kept in the store and told to each new one."""

    def __init__(self, settings: ServeSettings, store: Store | None = None):
        self.settings = settings
        self.store = store or open_store(settings.store_place)
        self._changing = threading.Lock()  # the catalogue, or which model it belongs to
        self._reloading = threading.Lock()
        self.model = self._load()
        self._replay(self.model)
        self.key = self._key()

    def ask(self, questions: Sequence[RecommendationRequest]) -> list[list[Answer] | UserError]:
        """Answers in order; a mistake of one question is its own result and spoils no other."""
        model = self.model
        try:
            return list(model.ask(questions, strict=False))
        except UserError as error:
            if len(questions) == 1:
                return [error]
            return [self.ask([question])[0] for question in questions]

    def reload(self) -> str:
        """Open the bundle's folder again and put it in the old one's place. Returns its key.

        Raises ``UserError`` for a bad bundle; the old one then goes on answering.
        """
        with self._reloading:
            key = self._key()
            model = self._load()
            with self._changing:
                self._replay(model)
                self.model, self.key = model, key
            _return_memory()
        return key

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> AddedItemIds:
        """Add items, durable when this returns; see ``Recommender.add_items``."""
        with self._changing:
            added = self.model.add_items(items)
            told = {item["item_id"]: dict(item) for item in items}
            self.store.change_items({item: told[item] for item in (*added.added, *added.restored)})
        return added

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Remove items, durable when this returns. ``UserError`` for an unknown one."""
        with self._changing:
            self.model.remove_items(item_ids)
            self.store.change_items(dict.fromkeys(item_ids))

    def _key(self) -> str:
        """The fingerprint of what lies in the bundle's folder now."""
        return read_json(self.settings.bundle / MANIFEST)["digest"][:16] if is_bundle(self.settings.bundle) else "run"

    def _load(self) -> Recommender:
        model = Recommender.load(self.settings.bundle, store=self.store)
        # The first pass of each kind allocates and compiles; no request should wait for that.
        model.ask(
            [
                RecommendationRequest(history=[model.snapshot.item_ids[0]]),
                RecommendationRequest(query="warm up", exclude_seen=False),
            ]
        )
        return model

    def _replay(self, model: Recommender) -> None:
        changes = self.store.changed_items()
        known = model.snapshot.index
        new = [columns for item, columns in changes.items() if columns is not None and item not in known]
        if new:
            model.add_items(pl.DataFrame(new, infer_schema_length=None))
        gone = [item for item, columns in changes.items() if columns is None and item in known]
        if gone:
            model.remove_items(gone)


def _return_memory() -> None:
    """Give the memory of a model that is gone back to the system: glibc keeps what was freed in pieces, and reload by reload the process would grow."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
