"""From the ordered log to the dataset's arrays: dense ids, then every user's events one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from genrec.config.schema import Config
from genrec.data.dataset import SURFACES
from genrec.data.prepare.blocks import ArrayFile, BlockFile
from genrec.data.prepare.ordering import OrderedLog, remaining_events
from genrec.data.prepare.parsed import ParsedLog
from genrec.data.prepare.threads import in_threads
from genrec.data.schema import ITEM_SCHEMA, empty

MAX_SURFACES = 1 << 10  # names of surfaces that are kept, in order of appearance


@dataclass
class Numbering:
    """Who has which dense id. ``user_index`` and ``item_index``: code of the parsed log -> dense id, -1 for none."""

    users: pl.DataFrame
    items: pl.DataFrame
    user_index: np.ndarray
    item_index: np.ndarray
    user_codes: np.ndarray


@dataclass
class Arrays:
    """The arrays of a dataset, on disk; ``given`` is the log's own split where the split rule needs it.

    ``surfaces``: None for a log that names one surface at most.
    """

    offsets: np.ndarray
    items: ArrayFile
    timestamps: ArrayFile
    actions: ArrayFile
    queries: ArrayFile
    given: ArrayFile | None
    surfaces: ArrayFile | None
    first_time: int
    last_time: int


def number_ids(
    ordered: OrderedLog, parsed: ParsedLog, config: Config, before: tuple[pl.Series, pl.Series] | None
) -> Numbering:
    """Dense ids in order of first appearance among the remaining events.

    Catalogue items without events come last, if they are kept. ``before``: users and items of the dataset that this one
    continues; they keep their ids and new ones follow. If one of them is gone, all ids are given anew.
    """
    users = _first_come(parsed.names("user"), ordered.first_user, ordered.user_counts).rename({"name": "user_id"})
    users = _keep_order(users, "user_id", before[0] if before else None)
    items = _first_come(parsed.names("item"), ordered.first_item, ordered.item_counts).rename({"name": "item_id"})
    catalogue = parsed.table("items")
    catalogue = (
        empty(ITEM_SCHEMA) if catalogue is None else catalogue.unique("item_id", keep="first", maintain_order=True)
    )
    items = items.join(catalogue, on="item_id", how="left", maintain_order="left")
    if config.data.keep_unseen_items:
        unseen = catalogue.join(items, on="item_id", how="anti", maintain_order="left")
        items = pl.concat([items, unseen], how="diagonal_relaxed")
    items = _keep_order(items, "item_id", before[1] if before else None)
    attributes = parsed.table("users")
    user_codes = users["code"].to_numpy()
    if attributes is not None:
        users = users.join(attributes.unique("user_id", keep="first"), on="user_id", how="left", maintain_order="left")
    return Numbering(
        users.drop("code"),
        items.drop("code"),
        _index(users["code"], len(ordered.user_counts)),
        _index(items["code"], len(ordered.item_counts)),
        user_codes,
    )


def _first_come(names: pl.Series, first: np.ndarray, counts: np.ndarray) -> pl.DataFrame:
    kept = np.flatnonzero(counts)
    codes = kept[np.argsort(first[kept])]
    return pl.DataFrame({"name": names.gather(codes), "code": pl.Series(codes, dtype=pl.Int64)})


def _keep_order(table: pl.DataFrame, key: str, before: pl.Series | None) -> pl.DataFrame:
    """The rows that were there before in their old order, the others behind; as it is where an old one is missing."""
    if before is None:
        return table
    old = pl.DataFrame({key: before, "__old__": pl.int_range(len(before), eager=True)})
    joined = table.join(old, on=key, how="left", maintain_order="left")
    if joined["__old__"].count() < len(before):
        return table
    return joined.sort("__old__", nulls_last=True, maintain_order=True).drop("__old__")


def _index(codes: pl.Series, size: int) -> np.ndarray:
    index = np.full(size, -1, np.int32)
    seen = np.flatnonzero(codes.is_not_null().to_numpy())
    index[codes.drop_nulls().to_numpy()] = seen
    return index


def write_arrays(
    ordered: OrderedLog,
    numbering: Numbering,
    actions: np.ndarray,
    folder: Path,
    scratch: Path,
    surfaces: bool = False,
) -> Arrays:
    """Put the events that are left behind each other by dense user id, in their order.

    ``actions``: code of an action -> dense id. ``surfaces``: keep those of the events.

    ``queries`` still holds the codes of the parsed log.
    """
    counts = ordered.user_counts[numbering.user_codes]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    total = int(offsets[-1])
    dtypes = ordered.files[0].dtypes if ordered.files else {}
    arrays = Arrays(
        offsets,
        ArrayFile(folder / "items.npy", np.int32, total),
        ArrayFile(folder / "timestamps.npy", np.int64, total),
        ArrayFile(folder / "actions.npy", np.int16, total),
        ArrayFile(folder / "queries.npy", np.int32, total),
        ArrayFile(scratch / "given.npy", dtypes["given"], total) if "given" in dtypes else None,
        ArrayFile(folder / SURFACES, np.int16, total) if surfaces and "surface" in dtypes else None,
        0,
        0,
    )

    def write(file: BlockFile) -> tuple[int, int] | None:
        block = remaining_events(ordered, file, [name for name in dtypes if name != "position"])
        file.remove()
        if not len(block["user"]):
            return None
        targets = {
            arrays.items: numbering.item_index[block["item"]],
            arrays.timestamps: block["time"],
            arrays.actions: actions[block["action"]],
            arrays.queries: block.get("query", np.full(len(block["user"]), -1, np.int32)),
        }
        if arrays.given is not None:
            targets[arrays.given] = block["given"]
        if arrays.surfaces is not None:
            targets[arrays.surfaces] = np.where(block["surface"] < MAX_SURFACES, block["surface"], -1)
        _put(targets, _positions(block["user"], numbering.user_index, offsets))
        return int(block["time"].min()), int(block["time"].max())

    spans = [span for span in in_threads(write, ordered.files) if span]
    if spans:
        arrays.first_time, arrays.last_time = min(first for first, _ in spans), max(last for _, last in spans)
    return arrays


def _positions(user: np.ndarray, user_index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where each event of a partition goes: users are whole and sorted, so an event's rank within its user is known."""
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(np.append(starts, len(user)))
    return np.repeat(offsets[user_index[user[starts]]] - starts, lengths) + np.arange(len(user))


def _put(targets: dict[ArrayFile, np.ndarray], positions: np.ndarray) -> None:
    """Write all columns of a partition: one piece where the positions follow each other, else one by one."""
    order = None
    if (np.diff(positions) < 0).any():
        order = np.argsort(positions)  # long runs: users are whole
        positions = positions[order]
    whole = positions[-1] - positions[0] + 1 == len(positions)
    for file, values in targets.items():
        values = values if order is None else values[order]
        if whole:
            file.write(int(positions[0]), values)
        else:
            file.scatter(positions, values)
