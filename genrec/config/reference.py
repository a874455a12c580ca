"""The reference of all settings, generated from their declarations.

``python -m genrec.config.reference configs/README.md`` writes it between the two markers of that page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from genrec.config.schema import Config
from genrec.config.setting import Setting, sections, settings

BEGIN, END = "<!-- settings: generated, do not edit -->", "<!-- end of settings -->"


def reference() -> str:
    """One Markdown table for the top level and one for each section."""
    known = list(settings(Config))
    parts = [_table("Top level", Config, [one for one in known if "." not in one.key])]
    for name, schema in sections(Config).items():
        parts.append(_table(f"`{name}`", schema, [one for one in known if one.key.startswith(f"{name}.")]))
    return f"{len(known)} settings.\n\n" + "\n".join(parts)


def _table(title: str, schema: type, rows: list[Setting]) -> str:
    about = " ".join((schema.__doc__ or "").split())
    lines = [f"### {title}", "", about, "", "| setting | default | meaning |", "| --- | --- | --- |"]
    for row in rows:
        accepted = f" Accepts: {row.range}." if row.range else ""
        meaning = f"{row.sentence}{accepted}".replace("|", "\\|")
        lines.append(f"| `{row.key}` | `{_text(row.default)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def with_reference(page: str) -> str:
    """The page with a new text between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def main() -> None:
    """Print the reference, or write it into the page that is named."""
    if len(sys.argv) < 2:
        sys.stdout.write(reference())
        return
    page = Path(sys.argv[1])
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
