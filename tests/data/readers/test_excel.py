"""Excel files, written here by hand: what their cells hold is what is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from genrec.data.readers import read_log
from genrec.data.readers.guess import guess_log
from genrec.data.schema import join_parts

pytest.importorskip("fastexcel")
T = 1_714_566_600  # 2024-05-01 12:30:00 UTC
NAMESPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def write_sheet(path: Path, rows: list[list[object]]) -> None:
    """A workbook with one sheet: texts as texts, numbers as numbers."""

    def cell(value: object) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return "<c/>" if value is None else f"<c><v>{value}</v></c>"

    body = "".join(f"<row>{''.join(cell(value) for value in row)}</row>" for row in rows)
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{RELATIONS}"><Relationship Id="r1" Type="{OFFICE}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{NAMESPACE}" xmlns:r="{OFFICE}"><sheets>'
        '<sheet name="Log" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{RELATIONS}"><Relationship Id="r1" '
        f'Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{NAMESPACE}"><sheetData>{body}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, '<?xml version="1.0" encoding="UTF-8"?>' + content)


def test_a_workbook_is_guessed_and_read(tmp_path: Path) -> None:
    write_sheet(
        tmp_path / "orders.xlsx",
        [
            ["Customer", "SKU", "Product name", "Price", "Order date"],
            [17, "0042", "Blue lamp", 19.9, 45413.520833333336],
            [18, "0043", "Red cup", 4.5, 45414.520833333336],
            [17, "0043", "Red cup", 4.5, 45426.520833333336],
        ],
    )
    guess = guess_log(tmp_path / "orders.xlsx")
    log = join_parts(read_log(guess.reader, guess.path, guess.options))
    day = 86_400
    assert log.events.select("user_id", "item_id", "timestamp").rows() == [
        ("17", "0042", T), ("18", "0043", T + day), ("17", "0043", T + 13 * day)
    ]  # fmt: skip
    assert log.items.select("item_id", "title", "price").rows() == [
        ("0042", "Blue lamp", 19.9), ("0043", "Red cup", 4.5)
    ]  # fmt: skip
    assert log.rows_read == 3 and not log.quarantine.height
