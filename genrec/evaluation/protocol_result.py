"""The table of a protocol: rows, intervals, paired comparisons, Markdown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test
from genrec.evaluation.protocol import OUR_NAMES

log = logging.getLogger(__name__)
FUSED = OUR_NAMES["fused"]


@dataclass
class ProtocolResult:
    """One table: per model, each metric of every request (N,). ``notes`` say how it was measured."""

    name: str
    title: str
    seed: int
    notes: list[str] = field(default_factory=list)
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    subject: str = FUSED  # the row that the others are compared with
    example: dict | None = None
    figure: tuple[str, Callable[[Path], None]] | None = None  # a file name, and what draws it

    def add(self, model: str, metrics: dict[str, np.ndarray]) -> None:
        """Add a row."""
        self.values[model] = metrics
        log.info("%-34s %s", model, " ".join(f"{name} {value.mean():.4f}" for name, value in metrics.items()))

    def rows(self) -> list[dict]:
        """Per model: means, and bootstrap intervals over requests."""
        return [
            {
                "model": model,
                "metrics": {name: float(value.mean()) for name, value in metrics.items()},
                "intervals": {name: bootstrap_interval(value, self.seed) for name, value in metrics.items()},
            }
            for model, metrics in self.values.items()
        ]

    def comparisons(self) -> list[str]:
        """The subject minus every other row on the table's first metric, paired by request."""
        if self.subject not in self.values:
            return []
        name, short = next(iter(self.values[self.subject])), self.subject.removeprefix("genrec, ")
        lines = []
        for model, metrics in self.values.items():
            if model != self.subject:
                difference = paired_test(self.values[self.subject][name], metrics[name], self.seed)
                lines.append(f"{self.title}: {short} minus {model}, {name}: {difference_text(*difference)}")
        return lines

    def markdown(self) -> str:
        """Title, notes, table, example and comparisons."""
        names = list(next(iter(self.values.values())))
        lines = [f"## {self.title}", "", *(f"- {note}" for note in self.notes), ""]
        lines += ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for model, metrics in self.values.items():
            lines.append(f"| {model} | " + " | ".join(f"{metrics[name].mean():.4f}" for name in names) + " |")
        if self.example:
            without = "; ".join(self.example["answers without a history"])
            lines += ["", f"Example: '{self.example['query']}'", "", f"- without a history: {without}"]
            for person in self.example["people"]:
                past, answers = "; ".join(person["last events"]), "; ".join(person["answers"])
                lines.append(f"- after {past}: {answers} (target: {person['sought']}, rank {person['rank of it']})")
        return "\n".join([*lines, "", *self.comparisons(), ""])
