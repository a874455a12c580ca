"""Which artefacts of a folder belong to the present config.

Every artefact carries the key of all that it was made from. A stage computes the key that the present config asks for.
An artefact with another key, or with an input that has another key, is stale: it is named and never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from genrec.artifacts.folders import open_artifact
from genrec.errors import UserError

_BECAUSE = " cannot be used: "


@dataclass(frozen=True)
class Stage:
    """One artefact folder.

    ``key`` computes the key that the present config asks for; None accepts any, where the inputs are out of reach. It
    is called only if all ``inputs`` (names of other stages) are current. ``content`` raises ``UserError`` for a folder
    that must not be used although its key is right.
    """

    name: str
    kind: str
    key: Callable[[], str | None]
    inputs: tuple[str, ...] = ()
    content: Callable[[], None] | None = None


class StageGraph:
    """The stages of one folder."""

    def __init__(self, folder: Path, stages: Iterable[Stage]):
        self.folder = folder
        self.stages = {stage.name: stage for stage in stages}

    def add(self, stage: Stage) -> None:
        """Add a stage whose key depends on the rest of the graph."""
        self.stages[stage.name] = stage

    def fault(self, name: str) -> str | None:
        """Why an artefact must not be used, in one line; None if it is whole and belongs to the present config."""
        try:
            self.require(name)
        except UserError as error:
            return str(error)
        return None

    def require(self, name: str) -> dict:
        """The manifest of an artefact. Raises ``UserError`` if it is missing, broken or stale, with the reason."""
        folder, stage = self.folder / name, self.stages.get(name)
        if stage is None:
            raise UserError(f"{folder} is not part of the present config; it is left aside")
        manifest = open_artifact(folder, stage.kind)
        for other in stage.inputs:
            if fault := self.fault(other):
                raise UserError(f"{folder}{_BECAUSE}{fault.rpartition(_BECAUSE)[2]}")
        key = stage.key()
        if key is not None and manifest["key"] != key:
            raise UserError(
                f"{folder} was made from another config, log or version of genrec; update it with: genrec run CONFIG"
            )
        if stage.content is not None:
            stage.content()
        return manifest
