"""The model behind the server: which bundle answers now, what was changed in it, and how a new one replaces it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import polars as pl

from genrec.artifacts.folders import MANIFEST, read_json
from genrec.errors import UserError
from genrec.inference.bundle import is_bundle
from genrec.inference.recommender import Recommender
from genrec.inference.requests import RecommendationRequest, Response
from genrec.inference.snapshot import AddedItemIds
from genrec.memory import return_memory
from genrec.serving.settings import ServeSettings
from genrec.serving.store import Store, StoreError
from genrec.serving.stores import open_store

Result = TypeVar("Result")


class Engine:
    """Holds one ``Recommender`` and replaces it as a whole. The store remembers what was changed since the export."""

    def __init__(self, settings: ServeSettings, store: Store | WatchedStore | None = None):
        self.settings = settings
        self.store = (
            store if isinstance(store, WatchedStore) else WatchedStore(store or open_store(settings.store_path))
        )
        self._changing = threading.Lock()  # the catalogue, or which model it belongs to
        self._reloading = threading.Lock()
        self.model = self._load()
        self._version = self._replay(self.model, 0)
        self.key = self._key()

    def canary(self) -> Engine | None:
        """The engine of the settings' canary bundle, on the same store; None without one."""
        if self.settings.canary is None:
            return None
        settings = replace(self.settings, bundle=self.settings.canary, canary=None, events=self.settings.store_path)
        return Engine(settings, self.store)

    def ask(self, requests: Sequence[RecommendationRequest]) -> list[Response | Exception]:
        """Responses in order; an error is the result of its own request alone.

        Where the store does not answer, requests that need it fail and the others are answered.
        """
        try:
            return list(self.model.ask(requests, strict=False))
        except StoreError as error:
            results: list[Response | Exception] = [error] * len(requests)
            others = [number for number, request in enumerate(requests) if not request.reads_user]
            if others:
                answers = self.ask([requests[number] for number in others])
                for number, answer in zip(others, answers, strict=True):
                    results[number] = answer
            return results
        except UserError as error:
            if len(requests) == 1:
                return [error]
            return [self.ask([request])[0] for request in requests]

    def reload(self) -> str:
        """Open the bundle's folder again and put it in the old one's place. Returns its key.

        Raises ``UserError`` for a bad bundle; the old one then goes on answering.
        """
        with self._reloading:
            key = self._key()
            model = self._load()
            with self._changing:
                self._version = self._replay(model, 0)
                self.model, self.key = model, key
            _settle_memory()
        return key

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> AddedItemIds:
        """Add items, durable before anybody sees them; see ``Recommender.add_items``."""
        columns = {item["item_id"]: dict(item) for item in items}

        def commit(added: AddedItemIds) -> None:
            self._keep({item: columns[item] for item in (*added.added, *added.restored)})

        with self._changing:
            return self.model.add_items(items, commit)

    def update_items(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Replace columns of known items, durable before anybody sees it; see ``Recommender.update_items``."""
        with self._changing:
            whole: dict[str, dict[str, Any] | None] = {
                item["item_id"]: {**_columns(self.model.item(item["item_id"])), **item} for item in items
            }
            self.model.update_items(items, lambda: self._keep(whole))

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Remove items, durable before anybody sees it. ``UserError`` for an unknown one."""
        with self._changing:
            self.model.remove_items(item_ids, lambda: self._keep(dict.fromkeys(item_ids)))

    def _keep(self, changes: dict[str, dict[str, Any] | None]) -> None:
        if changes:
            version = self.store.change_items(changes)
            # Changes of another server in between are looked for, not skipped.
            self._version = version if version == self._version + len(changes) else self._version

    def refresh(self) -> bool:
        """Take over item changes that another server on the same store made; whether there were any."""
        if self.store.version() == self._version:
            return False
        with self._changing:
            self._version = self._replay(self.model, self._version)
        return True

    def forget(self, user_id: str) -> tuple[int, bool]:
        """Erase a user; returns the number of events erased, and whether the bundle has some, suppressed now."""
        return self.store.forget(user_id), user_id in self.model.dataset.user_index

    def describe(self) -> dict[str, Any]:
        """What answers now: see ``replies.Description``."""
        model = self.model
        return {
            "bundle": self.key,
            "name": model.run.config.name,
            "fitted_on": model.fitted_on,
            "items": model.snapshot.n_available,
            "users": len(model.dataset.user_ids),
            "columns": {name: str(kind) for name, kind in model.snapshot.table.schema.items()},
            "modes": list(model.ranker.modes),
            "suggestions": model.has_suggestions,
        }

    def _key(self) -> str:
        """The fingerprint of what lies in the bundle's folder now."""
        return read_json(self.settings.bundle / MANIFEST)["digest"][:16] if is_bundle(self.settings.bundle) else "run"

    def _load(self) -> Recommender:
        model = Recommender.load(self.settings.bundle, store=self.store)
        # The first pass of each kind allocates and compiles; no request should wait for that.
        item = model.snapshot.item_ids[0]
        warm_up = RecommendationRequest(query="warm up", exclude_seen=False)
        model.ask([RecommendationRequest(history=[item]), warm_up], strict=False)
        if model.has_suggestions:
            model.suggest(history=[item], k=1)
        return model

    def _replay(self, model: Recommender, after: int) -> int:
        """Make the stored item changes after a version in a model; returns the version reached."""
        version = self.store.version()
        changes = self.store.changed_items(after)
        snapshot = model.snapshot
        given = {item: columns for item, columns in changes.items() if columns is not None}
        new = [columns for item, columns in given.items() if not snapshot.has(item)]
        if new:
            model.add_items(pl.DataFrame(new, infer_schema_length=None))
        old = [columns for item, columns in given.items() if snapshot.has(item)]
        changed = [columns for columns in old if _differs(columns, model.item(columns["item_id"]))]
        if changed:
            model.update_items(pl.DataFrame(changed, infer_schema_length=None))
        gone = [item for item, columns in changes.items() if columns is None and model.snapshot.has(item)]
        if gone:
            model.remove_items(gone)
        return version


class WatchedStore:
    """A store whose time and failures are reported: ``on_call(seconds, error)`` after each call."""

    def __init__(self, store: Store):
        self._store, self.name = store, store.name
        self.on_call: Callable[[float, StoreError | None], None] = lambda seconds, error: None
        self.failing: str | None = None  # what is wrong since the last call

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*arguments: Any) -> Any:
            began, failure = time.perf_counter(), None
            try:
                return method(*arguments)
            except StoreError as error:
                failure = error
                raise
            finally:
                self.failing = None if failure is None else str(failure)
                self.on_call(time.perf_counter() - began, failure)

        return call


def _columns(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "codes"}


def _differs(columns: dict[str, Any], item: dict[str, Any]) -> bool:
    return any(item.get(name) != value for name, value in columns.items())


def settle_objects() -> None:
    """Leave what is loaded now out of garbage collections: a full one would stop all answers for a quarter second."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _settle_memory() -> None:
    """Collect what a reload left and give it back to the system."""
    if gc.get_freeze_count():
        settle_objects()
    else:
        gc.collect()
    return_memory()
