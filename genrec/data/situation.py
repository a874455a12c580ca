"""The situation of a request: attributes of its user, the surface, and hour and weekday of its time.

Each is a field with few values. Its vocabulary is counted on users and events of the training split; row 0 of a field
stands for every value that it does not have, and for none. Attributes come from a table that the log gives once, so
they are those of today also for a request of years ago. Hours and weekdays are of UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl

from genrec.data.dataset import Dataset, Requests
from genrec.errors import UserError

AUTO, SURFACE, HOUR, WEEKDAY = "auto", "surface", "hour", "weekday"
OF_REQUEST = (SURFACE, HOUR, WEEKDAY)  # the other fields are attributes of the user
MAX_FIELDS = 16
MAX_VALUES = 256  # the most frequent values of a field; the others are unknown
MIN_COUNT = 5  # users, or for the surface events, that a value needs: rarer ones name people and teach nothing
BINS = 16  # of a number with more than MAX_NUMBERS distinct values: equally many users in each
MAX_NUMBERS = 32
MIN_KNOWN = 0.5  # fraction of the users whose value is known, for a field that is chosen by rule


@dataclass(frozen=True)
class Field:
    """``values``: those that have a row, from row 1 on. Or ``edges``, rising: a number up to the first has row 1."""

    name: str
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of rows."""
        return 1 + len(self.values) + (len(self.edges) + 1 if self.edges else 0)

    def codes(self, column: pl.Series) -> np.ndarray:
        """The rows of a column's values: (n,) int64, 0 for unknown ones."""
        if self.edges:
            numbers = column.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
            return np.where(np.isfinite(numbers), 1 + np.searchsorted(self.edges, numbers), 0)
        rows = {value: row for row, value in enumerate(self.values, 1)}
        return as_words(column).replace_strict(rows, default=0, return_dtype=pl.Int64).fill_null(0).to_numpy()


@dataclass(frozen=True)
class Situation:
    """The fields that a network reads, in their order."""

    fields: tuple[Field, ...]

    @property
    def names(self) -> list[str]:
        """The names of the fields."""
        return [field.name for field in self.fields]

    @property
    def attributes(self) -> list[Field]:
        """The fields that belong to users."""
        return [field for field in self.fields if field.name not in OF_REQUEST]

    def state(self) -> list[dict[str, Any]]:
        """Plain values that ``from_state`` takes back."""
        return [asdict(field) for field in self.fields]

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> Self:
        """The situation that ``state`` describes."""
        return cls(tuple(Field(one["name"], tuple(one["values"]), tuple(one["edges"])) for one in state))

    @classmethod
    def fit(cls, names: Sequence[str], dataset: Dataset, last: int) -> Self:
        """Count the values of ``names`` among users and events up to split ``last``.

        Raises ``UserError`` for an unknown name, and for ``surface`` where the prepared log has fewer than two.
        """
        users = dataset.users.filter(pl.Series(dataset.known_lengths(last) > 0))
        fields = []
        for name in names:
            if name == SURFACE and dataset.surfaces is None:
                raise UserError(
                    "model.situation: surface: the events name fewer than two surfaces, or were prepared by a version "
                    f"that did not keep them; then delete {dataset.folder} and run again"
                )
            if name == SURFACE:
                column = pl.Series(dataset.surface_names, dtype=pl.String)
                counts = np.bincount(_known_surfaces(dataset, last), minlength=len(column))
                fields.append(Field(name, _frequent(column, counts)))
            elif name in (HOUR, WEEKDAY):
                fields.append(Field(name, tuple(map(str, range(24 if name == HOUR else 7)))))
            elif name in users.columns and name != "user_id" and not users[name].dtype.is_nested():
                fields.append(_field(users[name]))
            else:
                known = [column for column in users.columns[1:] if not users[column].dtype.is_nested()]
                raise UserError(
                    f"model.situation: the users have no attribute '{name}'; there are "
                    f"{', '.join([*known, *OF_REQUEST])}"
                )
        return cls(tuple(fields))

    def stated(self, attributes: Mapping[str, Any] | None, surface: str | None) -> np.ndarray:
        """Rows (F,) of what a request states about itself, -1 where it states nothing.

        Raises ``UserError`` for a name that the network does not read.
        """
        given = dict(attributes or {})
        readable = [field.name for field in self.attributes]
        for name in given:
            if name not in readable:
                raise UserError(f"attributes: the model reads no '{name}'; it reads {', '.join(readable) or 'none'}")
        if surface is not None:
            if SURFACE not in self.names:
                raise UserError("surface: the model does not read it; train with it in model.situation")
            given[SURFACE] = surface
        rows = np.full(len(self.fields), -1, np.int64)
        for index, field in enumerate(self.fields):
            if field.name in given:
                rows[index] = field.codes(_one(field, given[field.name]))[0]
        return rows

    def stated_columns(self, table: pl.DataFrame) -> np.ndarray | None:
        """The same for a table of requests with a column for some fields: (N, F), None where it has none.

        A null in a column states that nothing is known.
        """
        known = [field for field in self.fields if field.name in table.columns and field.name not in (HOUR, WEEKDAY)]
        if not known:
            return None
        rows = np.full((len(table), len(self.fields)), -1, np.int64)
        for index, field in enumerate(self.fields):
            if field in known:
                rows[:, index] = field.codes(table[field.name])
        return rows


def _one(field: Field, value: Any) -> pl.Series:
    """A column of one stated value; ``UserError`` for one that is no text, number or truth value."""
    if value is not None and not isinstance(value, str | int | float | np.integer | np.floating):
        raise UserError(f"attributes: '{field.name}' must be text or a number, not {value!r:.40}")
    if field.edges and isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise UserError(f"attributes: '{field.name}' must be a number, not {value!r:.40}") from error
    return pl.Series(field.name, [value], strict=False)


def resolved(names: Sequence[str], dataset: Dataset, request_time: bool) -> list[str]:
    """The fields of ``model.situation``, with ``auto`` replaced by all that this log knows of most of its requests."""
    if AUTO not in names:
        if len(names) > MAX_FIELDS:
            raise UserError(f"model.situation: at most {MAX_FIELDS} fields are read, not {len(names)}")
        return list(names)
    last = 0
    users = dataset.users.filter(pl.Series(dataset.known_lengths(last) > 0))
    found = [column.name for column in users.iter_columns() if column.name != "user_id" and _tells(column)]
    surfaces = _known_surfaces(dataset, last)
    if len(np.unique(surfaces)) > 1:
        found.append(SURFACE)
    times = np.asarray(dataset.timestamps)
    if request_time and len(times) and len(np.unique(times[:: max(len(times) // 10_000, 1)] % 86_400)) > 24:
        found += [HOUR, WEEKDAY]
    return found[:MAX_FIELDS]


def situation_columns(dataset: Dataset, requests: Requests, names: Sequence[str]) -> list[pl.Series]:
    """The values of attributes and surface of a dataset's requests, as columns of their names."""
    users = dataset.users[requests.users] if requests.users is not None else dataset.users.clear(len(requests))
    columns = [users[name] for name in names if name not in OF_REQUEST and name in users.columns]
    if SURFACE in names:
        texts = pl.Series(SURFACE, [*dataset.surface_names, None], dtype=pl.String)
        surfaces = np.full(len(requests), -1) if requests.surfaces is None else requests.surfaces
        columns.append(texts[np.where(surfaces < 0, len(texts) - 1, surfaces)])
    return columns


def _tells(column: pl.Series) -> bool:
    """Whether a column has values that most users share with some others, and more than one."""
    if column.dtype.is_nested() or column.dtype.is_temporal() or not len(column):
        return False
    field = _field(column)
    return field.size > 2 and float((field.codes(column) > 0).mean()) >= MIN_KNOWN


def _field(column: pl.Series) -> Field:
    """The field of a column of the users' table."""
    if column.dtype.is_numeric() and column.drop_nulls().n_unique() > MAX_NUMBERS:
        numbers = column.cast(pl.Float64).to_numpy()
        edges = np.unique(np.quantile(numbers[np.isfinite(numbers)], np.arange(1, BINS) / BINS))
        return Field(column.name, edges=tuple(edges.tolist()))
    counted = as_words(column).drop_nulls().value_counts(name="__count__")
    return Field(column.name, _frequent(counted[column.name], counted["__count__"].to_numpy()))


def _frequent(values: pl.Series, counts: np.ndarray) -> tuple[str, ...]:
    """The most frequent values with at least ``MIN_COUNT``; equal counts in order of the text."""
    table = pl.DataFrame({"value": values, "count": counts}).filter(pl.col("count") >= MIN_COUNT)
    return tuple(table.sort("count", "value", descending=[True, False])["value"].head(MAX_VALUES).to_list())


def as_words(column: pl.Series) -> pl.Series:
    """Values as texts: equal ones have one text, whether a table holds 1, 1.0 or "1". Empty texts are null."""
    if column.dtype.is_float():
        whole = (column.is_finite() & (column == column.floor())).fill_null(False)
        texts = pl.select(
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
        ).to_series()
        texts = pl.select(pl.when(column.is_not_nan()).then(texts)).to_series()
    else:
        texts = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(texts != "").then(texts)).to_series().alias(column.name)


def _known_surfaces(dataset: Dataset, last: int) -> np.ndarray:
    """Surfaces of the events up to split ``last`` that have one: (n,) int64."""
    if dataset.surfaces is None:
        return np.zeros(0, np.int64)
    surfaces = np.asarray(dataset.surfaces)[np.asarray(dataset.split) <= last].astype(np.int64)
    return surfaces[surfaces >= 0]


class SituationReader:
    """The rows of a situation for requests of one dataset."""

    def __init__(self, situation: Situation, dataset: Dataset):
        """Raises ``UserError`` where the prepared data lack a column that the network reads."""
        self.situation = situation
        self._dataset = dataset

    @classmethod
    def of(cls, network: Any, dataset: Dataset) -> Self | None:
        """The reader of what ``network`` reads of a situation; None for one that reads none."""
        vectors = getattr(network, "situation", None)
        return None if vectors is None else cls(vectors.situation, dataset)

    @cached_property
    def _users(self) -> np.ndarray:
        """(n_users + 1, attributes) rows of the users; the last is that of a user that nobody knows."""
        table, fields = self._dataset.users, self.situation.attributes
        columns = [
            field.codes(table[field.name]) if field.name in table.columns else np.zeros(len(table), np.int64)
            for field in fields
        ]
        rows = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.int64)
        return np.concatenate([rows, np.zeros((1, len(fields)), np.int64)]).astype(np.int32)

    @cached_property
    def _surfaces(self) -> np.ndarray:
        """Rows of the dataset's surfaces, and of an unknown one."""
        field = next((field for field in self.situation.fields if field.name == SURFACE), None)
        names = pl.Series(self._dataset.surface_names, dtype=pl.String)
        rows = np.zeros(len(names), np.int64) if field is None else field.codes(names)
        return np.append(rows, 0)

    def codes(
        self,
        users: np.ndarray | None,
        surfaces: np.ndarray | None,
        times: np.ndarray,
        stated: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows (N, F) of requests of ``users`` (N,) on ``surfaces`` (N,), -1 or None for unknown, at ``times`` (N,).

        ``stated`` (N, F): rows that replace those, where not -1.
        """
        nobody = np.full(len(times), -1, np.int64)
        own = self._users[nobody if users is None else users]
        spots = self._surfaces[nobody if surfaces is None else surfaces]
        parts = {SURFACE: spots, HOUR: times // 3600 % 24 + 1, WEEKDAY: (times // 86_400 + 3) % 7 + 1}
        parts |= {field.name: own[:, column] for column, field in enumerate(self.situation.attributes)}
        rows = np.stack([parts[name] for name in self.situation.names], axis=1).astype(np.int64)
        return rows if stated is None else np.where(stated >= 0, stated, rows)
