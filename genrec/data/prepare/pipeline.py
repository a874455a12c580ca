"""From a raw log of any size to a prepared dataset: parse, order and clean, dense ids, split, queries, leakage report.

Tie rule: events are ordered by user, then time, then their position in the log. Memory is bounded by a part of the
reader, a partition of events and the distinct ids; events lie on disk between the steps. The parsed log stays in
``.<dataset>.parsed`` beside the dataset: when new files are appended to the log only these are parsed, and everything
behind parsing is done again from numbers. Users and items then keep their ids, and new ones come behind.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import (
    MANIFEST,
    atomic_folder,
    fingerprint,
    is_current,
    open_artifact,
    write_json,
)
from genrec.config.load import to_dict
from genrec.config.schema import Config
from genrec.data.dataset import ARRAYS, KIND, TEST, TRAIN, VALID
from genrec.data.prepare import leakage
from genrec.data.prepare.appended import all_log_files
from genrec.data.prepare.assemble import MAX_SURFACES, Arrays, Numbering, number_ids, write_arrays
from genrec.data.prepare.attach import attach_queries
from genrec.data.prepare.blocks import ArrayFile
from genrec.data.prepare.checksums import ChecksumIndex
from genrec.data.prepare.cold import cold_items, without_cold
from genrec.data.prepare.contents import check_impressions, check_joins, contents, describe
from genrec.data.prepare.impressions import write_impressions, write_together
from genrec.data.prepare.ordering import OrderedLog, order_events
from genrec.data.prepare.parsed import ParsedLog, parse_log
from genrec.data.prepare.splits import (
    HELD_OUT_RULE,
    RULES,
    SplitFingerprint,
    Splitter,
    UserChunk,
    digest,
    tied_targets,
    user_chunks,
)
from genrec.data.prepare.threads import in_threads
from genrec.data.readers.toolkit import did_you_mean
from genrec.data.schema import QUARANTINE_SCHEMA, empty
from genrec.errors import UserError

log = logging.getLogger(__name__)
PREPARE_VERSION = 4  # raised when the same config would give another dataset
TIE_RULE = "time, then position in the log"


def checksum_index(target: Path) -> ChecksumIndex:
    """The index of the log's checksums beside the dataset ``target``."""
    return ChecksumIndex(target.with_name(f".{target.name}.checksums.json"))


def prepare_key(config: Config, checksums: ChecksumIndex) -> str:
    """The fingerprint of everything a prepared dataset depends on: the content of files, not their paths or times."""
    files = [checksums.fingerprint(file) for file in all_log_files(config.data)]
    data = {key: value for key, value in to_dict(config.data).items() if key not in ("path", "append")}
    return fingerprint(PREPARE_VERSION, data, to_dict(config.split), to_dict(config.queries), files, config.seed)


def prepare(config: Config, target: Path) -> Path:
    """Read the configured log and write the prepared dataset to ``target``; skipped when it is up to date."""
    checksums = checksum_index(target)
    key = prepare_key(config, checksums)
    checksums.save()
    if is_current(target, KIND, key):
        log.info("prepare: up to date (%s)", target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target) as scratch:
        parsed = parse_log(config, target.with_name(f".{target.name}.parsed"), checksums)
        report = target.with_name(f"{target.name}.quarantine.csv")
        check_quarantine(parsed, config.data.max_quarantine_share, report)
        check_joins(parsed, "item_id", "items")
        check_joins(parsed, "user_id", "users")
        ordered = order_events(parsed, config, scratch)
        if not len(ordered):
            check_catalogue(parsed, ordered, config)
        before = previous_ids(target, parsed, config)
        info: dict = {}
        with atomic_folder(target, KIND, key, info) as folder:
            build(config, parsed, ordered, before, folder, scratch, info)
    for line in summary(info):
        log.info("prepare: %s", line)
    return target


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target for intermediate files, removed at the end, with those that killed jobs left."""
    for old in target.parent.glob(f".{target.name}.*.scratch"):
        if not _alive(int(old.name.split(".")[-2])):
            shutil.rmtree(old, ignore_errors=True)
    folder = target.with_name(f".{target.name}.{os.getpid()}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


def check_quarantine(parsed: ParsedLog, limit: float, report: Path) -> None:
    """Stop when the fraction of bad rows passes the limit; reasons are counted and rows written to ``report``."""
    bad, read, first = parsed.total("quarantine"), parsed.total("rows_read"), parsed.first_bad
    report.unlink(missing_ok=True)
    if first is None:
        return
    rows = pl.scan_parquet(parsed.files("quarantine"))
    reason = pl.col("reason").str.replace(r": [^:]*$", "")  # without the value that a reason ends with
    counts = rows.group_by(reason).len().sort("len", "reason", descending=[True, False]).head(4).collect()
    reasons = "; ".join(f"{count} {name}" for name, count in counts.iter_rows())
    where = f"{first['source']} line {first['line']}: {first['reason']}"
    log.warning("%d of %d rows were put aside (%s), the first: %s", bad, read, reasons, where)
    if bad > limit * max(read, 1):
        rows.head(10_000).collect().write_csv(report)
        raise UserError(
            f"{where}; {bad} of {read} rows are bad ({reasons}), more than data.max_quarantine_share={limit} allows; "
            f"see {report}"
        )


def check_catalogue(parsed: ParsedLog, ordered: OrderedLog, config: Config) -> None:
    """``UserError`` for a log without events, unless the config asks for a catalogue with judgments."""
    if parsed.total("events") or not parsed.total("items"):
        raise UserError(
            f"data.path {config.data.path}: no event is left after filtering ({_counted(row_counts(parsed, ordered))})"
        )
    if not config.data.keep_unseen_items:
        raise UserError(
            f"data.path {config.data.path}: the log has no events, only {parsed.total('items')} items and "
            f"{parsed.total('judgments')} judgments; set data.keep_unseen_items=true to prepare these"
        )


def row_counts(parsed: ParsedLog, ordered: OrderedLog) -> dict:
    """Every row of the log, accounted for.

    ``read`` rows are ``events + items + users + judgments + quarantined`` and the ``filtered`` ones, plus
    ``impressions`` in formats where these are rows of their own; ``events`` are the ``kept`` ones and those that each
    rule removed.
    """
    rules = (
        "other_actions",
        "outside_window",
        "duplicates",
        "consecutive_repeats",
        "below_minimum",
    )
    return {
        "read": parsed.total("rows_read"),
        "quarantined": parsed.total("quarantine"),
        "filtered": parsed.filtered,
        **{kind: parsed.total(kind) for kind in ("events", "items", "users", "judgments", "impressions")},
        **{rule: ordered.removed[rule] for rule in rules},
        "kept": len(ordered),
    }


def previous_ids(target: Path, parsed: ParsedLog, config: Config) -> tuple[pl.Series, pl.Series] | None:
    """Users and items of the dataset at ``target`` if the log continues its log under the same rules; else None."""
    if not (target / MANIFEST).is_file():
        return None
    try:
        was = open_artifact(target, KIND)["info"]["log"]
    except (UserError, KeyError):
        return None
    if was != _log_identity(parsed, config) | {"sources": parsed.event_keys[: len(was["sources"])]}:
        return None
    log.info(
        "prepare: %d new sources behind the %d known ones; ids are kept",
        len(parsed.event_keys) - len(was["sources"]),
        len(was["sources"]),
    )
    return pl.read_parquet(target / "users.parquet")["user_id"], pl.read_parquet(target / "items.parquet")["item_id"]


def _log_identity(parsed: ParsedLog, config: Config) -> dict:
    """What the dataset's ids come from: the sources in order, and the rules."""
    rules = {
        key: value
        for key, value in to_dict(config.data).items()
        if key not in ("cache", "max_quarantine_share", "path", "append", "fetch")
    }
    return {"sources": parsed.event_keys, "rules": fingerprint(rules)}


def build(
    config: Config,
    parsed: ParsedLog,
    ordered: OrderedLog,
    before: tuple[pl.Series, pl.Series] | None,
    folder: Path,
    scratch: Path,
    info: dict,
) -> None:
    """Write the arrays and tables of the dataset to ``folder`` and fill the manifest's ``info``."""
    numbering = number_ids(ordered, parsed, config, before)
    actions, action_index = order_actions(parsed, config)
    check_impressions(config, parsed, actions)
    surfaces = parsed.names("surface").to_list()
    arrays = write_arrays(ordered, numbering, action_index, folder, scratch, len(surfaces) > 1)
    log.info("prepare: %d events of %d users are in order", len(arrays.items), len(numbering.users))
    target_level = first_target(config, parsed, actions)
    arrays, split, info_split, report = split_arrays(config, arrays, numbering, folder, scratch, target_level)
    names = parsed.names("query") if "query" in parsed.columns else pl.Series("name", [], pl.String)
    query_table, heldout, synthetic = attach_queries(arrays, split, numbering.users, numbering.items, names, config)
    item_index = numbering.item_index
    if (
        config.split.cold_share
    ):  # that a cold item was shown says as much as that it was taken: there it counts as none of the catalogue
        cold = cold_items(numbering.items["item_id"], config.split.cold_share, config.seed)
        item_index = np.where((item_index >= 0) & cold[item_index], np.int32(-1), item_index)
    impressions = write_impressions(parsed, numbering.user_index, item_index, arrays.offsets, folder, scratch)
    for name, table in {
        "users": numbering.users,
        "items": numbering.items,
        "queries": query_table,
        "heldout_queries": heldout,
    }.items():
        table.write_parquet(folder / f"{name}.parquet")
    empty(QUARANTINE_SCHEMA).write_parquet(folder / "quarantine.parquet")
    for kind in ("quarantine", "judgments"):
        write_together(parsed.files(kind), folder / f"{kind}.parquet")
    write_json(folder / "leakage.json", report)
    assert all((folder / f"{name}.npy").is_file() for name in ARRAYS)
    searches = sum(
        int((arrays.queries.read(chunk.start, chunk.stop) >= 0).sum()) for chunk in user_chunks(arrays.offsets)
    )
    info |= {
        "users": len(numbering.users),
        "items": len(numbering.items),
        "events": len(arrays.items),
        "actions": actions,
        "target_level": target_level,
        **info_split,
        "synthetic_queries": synthetic,
        "search_events": searches,
        "surfaces": surfaces[:MAX_SURFACES] if arrays.surfaces is not None else [],
        "rows": row_counts(parsed, ordered),
        "impressions": impressions,
        "leakage": {name: report[name] for name in ("valid", "test")},
        "log": _log_identity(parsed, config),
    }
    if len(arrays.items):
        info["contents"] = contents(parsed, ordered, numbering, arrays, actions)


def order_actions(parsed: ParsedLog, config: Config) -> tuple[list[str], np.ndarray]:
    """The dataset's actions in the order of the feedback chain, then of appearance; and each code's index in it."""
    names = parsed.names("action").to_list()
    actions = [
        name
        for name in dict.fromkeys([*parsed.chain, *names])
        if config.data.actions is None or name in config.data.actions
    ]
    return actions, np.array([actions.index(name) if name in actions else -1 for name in names], np.int16)


def first_target(config: Config, parsed: ParsedLog, actions: list[str]) -> int:
    """The lowest stage of the feedback chain that an event must have reached to be predicted."""
    name = config.data.target_action
    if name is None:
        return 0
    chain = [action for action in actions if action in parsed.chain]
    if name not in chain:
        tail = did_you_mean(name, chain) if chain else "it has none"
        raise UserError(f"data.target_action: '{name}' is not in the log's feedback chain; {tail}")
    return actions.index(name)


def split_arrays(
    config: Config, arrays: Arrays, numbering: Numbering, folder: Path, scratch: Path, target_level: int = 0
) -> tuple[Arrays, ArrayFile, dict, dict]:
    """Split the events.

    Returns the remaining arrays, ``split.npy``, the manifest's part about the split, and the leakage report on the
    events from ``target_level`` on.
    """
    given_valid = False
    if config.split.kind == "given" and arrays.given is not None:
        given_valid = any((arrays.given.read(p.start, p.stop) == VALID).any() for p in user_chunks(arrays.offsets))
    splitter, before = Splitter(config.split, arrays.timestamps, arrays.offsets, given_valid), None
    if config.split.cold_share:
        cold = cold_items(numbering.items["item_id"], config.split.cold_share, config.seed)
        arrays, before = without_cold(arrays, splitter, cold, folder, scratch)
    total, offsets = len(arrays.items), arrays.offsets
    split = ArrayFile(folder / "split.npy", np.uint8, total)
    report = leakage.LeakageReport(len(numbering.items), arrays.first_time, arrays.last_time)
    prints, counts, ties = SplitFingerprint(), np.zeros(3, np.int64), 0

    def decide(chunk: UserChunk) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, dict[str, int]]:
        times, items = arrays.timestamps.read(chunk.start, chunk.stop), arrays.items.read(chunk.start, chunk.stop)
        given = arrays.given.read(chunk.start, chunk.stop) if arrays.given else None
        decided = splitter(chunk, times, given) if before is None else before.read(chunk.start, chunk.stop)
        split.write(chunk.start, decided)
        digests = {"items": digest(chunk.start, items), "split": digest(chunk.start, decided)}
        return items, times, decided, np.bincount(decided, minlength=3), tied_targets(chunk, times, decided), digests

    for items, times, decided, sizes, tied, digests in in_threads(decide, user_chunks(offsets)):
        counts, ties = counts + sizes, ties + tied
        prints.add(digests)
        report.see_train(items, times, decided)

    def targets(chunk: UserChunk) -> dict:
        items, times, decided = (
            array.read(chunk.start, chunk.stop) for array in (arrays.items, arrays.timestamps, split)
        )
        eligible = arrays.actions.read(chunk.start, chunk.stop) >= target_level if target_level else None
        return report.targets(chunk, items, times, decided, eligible)

    for targets_of in in_threads(targets, user_chunks(offsets)):
        report.see_targets(targets_of)
    info = {
        "train_events": int(counts[TRAIN]),
        "valid_events": int(counts[VALID]),
        "test_events": int(counts[TEST]),
        "split": config.split.kind,
        "split_rule": RULES[config.split.kind],
        "held_out_rule": HELD_OUT_RULE,
        "tie_rule": TIE_RULE,
        "test_targets_tied_in_time": ties,
        "cut_times": splitter.cuts,
        "split_fingerprint": prints.result(numbering.users["user_id"], numbering.items["item_id"], offsets),
    }
    return arrays, split, info, report.result()


def summary(info: dict) -> list[str]:
    """What a person should read after preparing: counts, the split, the rows left out, the leakage report."""
    if not info["events"]:
        return [
            (
                f"no events: a catalogue of {info['items']} items and {info['rows']['judgments']} judgments. "
                "'genrec tokenize' gives the items semantic IDs; training and evaluation need a log with events"
            ),
            f"rows: {_counted(info['rows'])}",
        ]
    lines = [
        (
            f"{info['events']} events, {info['users']} users, {info['items']} items; "
            f"split {info['split']} {info['split_fingerprint']}: "
            f"{info['train_events']} train, {info['valid_events']} valid, {info['test_events']} test events"
        ),
        f"rows: {_counted(info['rows'])}",
        f"ties: {info['test_targets_tied_in_time']} test events share their time with the one before "
        f"(rule: {info['tie_rule']})",
    ]
    return [*lines, *(f"leakage: {line}" for line in leakage.summary(info["leakage"])), *describe(info)]


def _counted(rows: dict) -> str:
    flat = {**{key: value for key, value in rows.items() if key != "filtered"}, **rows["filtered"]}
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in flat.items() if value)
