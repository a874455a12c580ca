"""Items that are added, changed and removed while requests are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from genrec.errors import UserError
from genrec.inference.snapshot import AddedItemIds, CatalogueSnapshot
from genrec.memory import return_memory

Items = pl.DataFrame | Sequence[Mapping[str, Any]]


class ChangingCatalogue:
    """The present snapshot, and changes that replace it one after the other; a reader keeps the one it began with."""

    def __init__(self, snapshot: CatalogueSnapshot):
        self._snapshot = snapshot
        self._changing, self._merging = threading.Lock(), threading.Lock()

    @property
    def snapshot(self) -> CatalogueSnapshot:
        """The present state of the catalogue."""
        return self._snapshot

    def add_items(self, items: Items, commit: Callable[[AddedItemIds], None] | None = None) -> AddedItemIds:
        """Add items: encoded with the fixed codebooks, nothing is trained.

        Columns are those of ``genrec/data/schema.py``; ``item_id`` is required. They can be recommended, searched,
        ranked and read in histories as soon as this returns; a bundle on disk is not changed. In a catalogue of more
        than 131,072 items the code search (mode ``generate``) finds them after ``merge_items``, which a thread calls
        once 2 % of the catalogue are new; all other candidate sources do at once. An item that exists already stays as
        it is; a removed one comes back with the columns given. ``commit`` makes the change durable: it is called before
        anybody sees the change, and nothing changes where it raises. Raises ``UserError`` for a missing, empty or
        double id.
        """
        with self._changing:
            snapshot, added = self._snapshot.add(_table(items))
            if commit is not None:
                commit(added)
            self._snapshot = snapshot
        self._merge_if_due()
        return added

    def _merge_if_due(self) -> None:
        if self._snapshot.merge_due and not self._merging.locked():
            threading.Thread(target=self._merge_due_items, name="merge of changed items", daemon=True).start()

    def _merge_due_items(self) -> None:
        while self._snapshot.merge_due:
            self.merge_items()

    def merge_items(self) -> CatalogueSnapshot:
        """Let the code search find all items that are added by now, and take removed ones out of it.

        The time follows the size of the catalogue.
        Requests are answered and items change meanwhile.
        """
        with self._merging:
            before = self._snapshot.ids
            snapshot = self._merge()
        if snapshot.ids is not before:
            del before
            return_memory()
        return snapshot

    def _merge(self) -> CatalogueSnapshot:
        while True:
            snapshot = self._snapshot
            merged = snapshot.merged()
            with self._changing:
                if self._snapshot.text_version == snapshot.text_version:  # node vectors are means of item vectors
                    if merged is not snapshot:
                        self._snapshot = self._snapshot.with_search_of(merged)
                    return self._snapshot

    def update_items(self, items: Items, commit: Callable[[], None] | None = None) -> None:
        """Replace the given columns of known items; ``commit`` as in ``add_items``. ``UserError`` for an unknown item.

        A new title, text, brand or category gives the item a new text vector; its codes stay until the next ``genrec
        tokenize``.
        """
        self._change(lambda snapshot: snapshot.update(_table(items)), commit)

    def remove_items(self, item_ids: Sequence[str], commit: Callable[[], None] | None = None) -> None:
        """Never recommend these again; they still count in histories.

        They leave the code tree at once, in a large catalogue (see ``add_items``) with the next merge. ``commit`` as in
        ``add_items``. ``UserError`` for an unknown item.
        """
        self._change(lambda snapshot: snapshot.remove(list(item_ids)), commit)
        self._merge_if_due()

    def _change(
        self, change: Callable[[CatalogueSnapshot], CatalogueSnapshot], commit: Callable[[], None] | None
    ) -> None:
        with self._changing:
            snapshot = change(self._snapshot)
            if commit is not None:
                commit()
            self._snapshot = snapshot


def _table(items: Items) -> pl.DataFrame:
    if isinstance(items, pl.DataFrame):
        return items
    try:
        return pl.DataFrame(list(items), infer_schema_length=None)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:  # Polars raises all of these
        raise UserError("items: the values of a column must be of one type") from error
