"""JDsearch: one line a person, own clocks, labels that order must not give away, and every line accounted for."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log, toolkit
from genrec.data.readers.jdsearch import BEHAVIOUR, PRODUCT
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

# The example of the data's own description, with the label of a second candidate changed to "cart".
PERSON = "12\x1832\x1856\t789_456_457\t3.0_2.0_0.0\t323\x18328_-1_12\x1854\t889_256_345\tORD_FLW_CART\t0_12_4_5"
NEW_PERSON = "9\t456\t0.0\t\t\t\t0"
PRODUCTS = [
    "456\t11\x1812\t5\t51\x1852\t1\t61\t2\t62\x1863\t3\t\t4\t64\t77",
    "889\t13\t6\t\t1\t\t2\t\t3\t\t4\t\t",
]


def fill(folder: Path, people: list[str], products: list[str], header: bool = True, suffix: str = "") -> Path:
    for name, columns, rows in (("release_data.txt", BEHAVIOUR, people), ("product_data.txt", PRODUCT, products)):
        text = "\n".join([*(["\t".join(columns)] if header else []), *rows]) + "\n"
        (folder / (name + suffix)).write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    return folder


def read(path: Path) -> RawLog:
    log = join_parts(read_log("jdsearch", path, {}))
    people = {*log.events["user_id"], *log.impressions["user_id"]}
    assert log.rows_read == len(people) + log.items.height + log.quarantine.height + sum(log.filtered.values())
    return log


@pytest.mark.parametrize(("header", "suffix"), [(True, ".gz"), (False, "")])
def test_people_and_products(tmp_path, header, suffix):
    log = read(fill(tmp_path, [PERSON, NEW_PERSON], PRODUCTS, header, suffix))
    one, two = (f"release_data:{line + header}" for line in (1, 2))
    assert log.events.select(
        "user_id", "item_id", "timestamp", "action", "query", "surface", "request_id", "split"
    ).rows() == [
        (one, "889", 0, "purchase", "323 328", "search", None, "train"),
        (one, "256", 12, "follow", None, "feed", None, "train"),
        (one, "345", 16, "cart", "12 54", "search", None, "train"),
        (one, "456", 21, "cart", "12 32 56", "search", one, "test"),
        (one, "789", 21, "purchase", "12 32 56", "search", one, "test"),
    ]
    # In the order of ids, not of the file, which lists what was acted on first.
    assert log.impressions.select("request_id", "item_id", "timestamp", "position", "action").rows() == [
        (one, "456", 21, None, "cart"),
        (one, "457", 21, None, "impression"),
        (one, "789", 21, None, "purchase"),
        (two, "456", 0, None, "impression"),
    ]
    assert log.items.select("item_id", "title", "brand", "category", "shop_id").rows() == [
        ("456", "11 12", "51 52", ["61", "62 63", "64"], "77"),
        ("889", "13", None, None, None),
    ]
    assert log.quarantine.is_empty() and log.rows_read == 4
    assert log.chain == ("impression", "click", "follow", "cart", "purchase")


def test_bad_lines_have_their_reason(tmp_path):
    fields = PERSON.split("\t")

    def changed(position: int, value: str) -> str:
        return "\t".join([*fields[:position], value, *fields[position + 1 :]])

    bad = {
        changed(0, " "): "no query",
        changed(2, "1.0_0.0"): "candidates and labels",
        changed(4, "889_256"): "history differ",
        changed(6, "0_12_4"): "one longer",
        changed(6, "0_12_x_5"): "whole number",
        changed(6, "0_12_-4_5"): "whole number",
        changed(5, "ORD_BUY_CART"): "none of CLICK",
        changed(2, "1.0_4.0_0.0"): "candidate label",
        changed(2, "1.0_x_0.0"): "candidate label",
        changed(1, "789__457"): "empty id in candidate_wid_list",
        changed(4, "889_256_"): "empty id in history_wid_list",
        "\t".join(fields[:6]): "6 fields",
    }
    products = [*PRODUCTS, PRODUCTS[0], "\t".join(["", *PRODUCTS[0].split("\t")[1:]])]
    log = read(fill(tmp_path, [PERSON, *bad, "9\t\t\t\t\t\t0"], products))
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    for line, words in enumerate(bad.values(), start=3):
        assert words in actual["release_data.txt", line]
    assert actual["product_data.txt", 5] == "no wid" and len(actual) == len(bad) + 1
    assert log.filtered == {"neither history nor candidates": 1, toolkit.REPEATED_ITEM: 1} and log.events.height == 5


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match="release_data"):
        read(tmp_path)
    fill(tmp_path, [PERSON], PRODUCTS)
    assert read(tmp_path / "release_data.txt").items.is_empty()
    assert read(tmp_path / "*.txt").items.height == 2
    (tmp_path / "release_data.txt").write_text("query\tcandidate_wid_list\n")
    with pytest.raises(UserError, match="candidate_label_list"):
        read(tmp_path)


def test_batches_do_not_change_the_log(tmp_path, monkeypatch):
    people = [PERSON.replace("889", str(n)) if n % 5 else PERSON.replace("ORD", "BUY") for n in range(60)]
    fill(tmp_path, people, [PRODUCTS[0].replace("456", str(n // 2)) for n in range(60)])
    whole = read(tmp_path)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 400)
    parts = list(read_log("jdsearch", tmp_path, {}))
    log = join_parts(parts)
    assert len(parts) > 10 and log.filtered == whole.filtered and whole.quarantine.height == 12
    for name in ("events", "impressions", "items", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))
