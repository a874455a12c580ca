"""Exports in further languages and notations, with invented rows: guessed as a person reads them, or refused."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from genrec.data.readers.guess import guess_log
from genrec.data.readers.guess.languages import role_by_words, stage_by_words
from genrec.errors import UserError
from tests.data.readers.layouts import DAY, Layout, T, check, guessed, json_lines, lines, parquet, write

MIDNIGHT = T - T % DAY  # 2024-05-01
N = range(12)


def chained(words: str, names: str, date: str = "2024-05-{:02d} 12:30:00") -> Layout:
    """A log with view, cart and purchase in a language."""
    actions = words.split(", ")
    rows = [f"{n % 4},{100 + n % 7},{date.format(n + 1)},{actions[n % 3]}" for n in N]
    events = [(str(n % 4), str(100 + n % 7), T + n * DAY) for n in N]
    return Layout({"log.csv": lines(names, *rows)}, events, actions=actions * 4, chain=tuple(actions))


CASES: dict[str, Layout] = {
    "italian-trailing-separator": Layout(
        {
            "vendite.csv": lines(
                "Codice cliente;Codice articolo;Descrizione articolo;Categoria;Data ordine;Qta;Prezzo unitario;",
                *(f"C{n % 4:03d};A{n % 7};Caffè {n % 7};Cibo;{n + 13}/05/2024 12:30;1;1.0{n},50;" for n in range(9)),
                end="\r\n",
            ).encode("cp1252")
        },
        [(f"C{n % 4:03d}", f"A{n % 7}", T + (n + 12) * DAY) for n in range(9)],
        titles={"A3": "Caffè 3"},
        categories={"A3": ["Cibo"]},
        prices={"A3": 103.5},
    ),
    "portuguese": chained("visualizacao, carrinho, compra", "id_usuario,id_produto,dt_evento,tipo_evento"),
    "turkish": chained("görüntüleme, sepet, satın alma", "kullanıcı_id,ürün_id,tarih,işlem", "{:02d}.05.2024 12:30"),
    "russian-cp1251": Layout(
        {
            "заказы.csv": lines(
                "Код клиента;Код товара;Наименование;Дата заказа;Количество;Цена",
                *(f"К-{n % 4};Т-{n % 7};Лампа настольная {n % 7};{n + 1:02d}.05.2024 12:30:00;1;1 299,5" for n in N),
                end="\r\n",
            ).encode("cp1251")
        },
        [(f"К-{n % 4}", f"Т-{n % 7}", T + n * DAY) for n in N],
        titles={"Т-3": "Лампа настольная 3"},
        prices={"Т-3": 1299.5},
    ),
    "polish-utf16": Layout(
        {
            "zamowienia.txt": lines(
                "\ufeffId klienta\tId produktu\tNazwa produktu\tData zamówienia\tIlość",
                *(f"k{n % 4}\tp{n % 7}\tŁyżka {n % 7}\t2024-05-{n + 1:02d}\t1" for n in N),
            ).encode("utf-16-le")
        },
        [(f"k{n % 4}", f"p{n % 7}", MIDNIGHT + n * DAY) for n in N],
        titles={"p3": "Łyżka 3"},
    ),
    "dutch-quotes": Layout(
        {
            "bestellingen.csv": lines(
                '"Klantnummer";"Artikelnummer";"Omschrijving";"Besteldatum";"Aantal";"Prijs"',
                *(f'"{n % 4}";"0{n % 7}";"Lamp ""groot"" {n % 7}";"{n + 13}-05-2024";"1";"12,50"' for n in range(9)),
            )
        },
        [(str(n % 4), f"0{n % 7}", MIDNIGHT + (n + 12) * DAY) for n in range(9)],
        titles={"03": 'Lamp "groot" 3'},
        prices={"03": 12.5},
    ),
    "french-clock": Layout(
        {
            "commandes.csv": lines(
                "id_client;ref_produit;libelle;date_commande;qte;prix_unitaire_ttc",
                *(f"{n % 4};R{n % 7};Crème {n % 7};{n + 13}/05/2024 à 12h30;1;12,50 €" for n in range(9)),
            )
        },
        [(str(n % 4), f"R{n % 7}", T + (n + 12) * DAY) for n in range(9)],
        titles={"R3": "Crème 3"},
        prices={"R3": 12.5},
    ),
    "korean-cp949": Layout(
        {
            "주문.csv": lines(
                "회원번호,상품코드,상품명,주문일시,수량,판매가",
                *(f'{n % 4},P{n % 7},램프 {n % 7},2024-05-{n + 1:02d} 12:30,1,"12,500"' for n in N),
            ).encode("cp949")
        },
        [(str(n % 4), f"P{n % 7}", T + n * DAY) for n in N],
        titles={"P3": "램프 3"},
        prices={"P3": 12500.0},
    ),
    "tracked-events-gz": Layout(
        {
            "track.ndjson.gz": gzip.compress(
                json_lines(
                    *(
                        {
                            "messageId": f"m{n}",
                            "userId": f"u{n % 4}",
                            "event": ["Product Viewed", "Product Added", "Order Completed"][n % 3],
                            "properties": {"product_id": f"p{n % 7}", "name": f"Lamp {n % 7}", "price": 9.5},
                            "timestamp": f"2024-05-{n + 1:02d}T12:30:00.123Z",
                        }
                        for n in N
                    )
                ).encode()
            )
        },
        [(f"u{n % 4}", f"p{n % 7}", T + n * DAY) for n in N],
        chain=("Product Viewed", "Product Added", "Order Completed"),
        titles={"p3": "Lamp 3"},
    ),
    "events-under-users": Layout(
        {
            "export.json": json.dumps(
                {
                    "exported": "2024-06-01",
                    "users": [
                        {"id": f"u{u}", "events": [{"item": f"i{n}", "type": "view", "at": T + n} for n in range(4)]}
                        for u in range(4)
                    ],
                },
                indent=1,
            )
        },
        [(f"u{u}", f"i{n}", T + n) for u in range(4) for n in range(4)],
    ),
    "object-of-lists": Layout(
        {"histories.json": json.dumps({f"u{u}": [f"i{u}", f"j{u}", "k"] for u in range(3)})},
        [(f"u{u}", item, u + 1 << 16 | n) for u in range(3) for n, item in enumerate((f"i{u}", f"j{u}", "k"))],
    ),
    "lines-of-user-and-items": Layout(
        {"Sports.txt": lines("1 5 3 8", "2 3 9", "3 8 5 3 1")},
        [
            (str(u), item, u << 16 | n)
            for u, items in ((1, "538"), (2, "39"), (3, "8531"))
            for n, item in enumerate(items)
        ],
    ),
    "pairs-by-spaces": Layout(
        {"Beauty.txt": lines(*(f"{u} {30 + (u * 3 + n) % 9}" for u in range(1, 9) for n in range(5)))},
        [(str(u), str(30 + (u * 3 + n) % 9), 5 * u + n - 4) for u in range(1, 9) for n in range(5)],
    ),
    "partitions-of-days": Layout(
        {
            f"dt=2024-05-0{n + 1}/part-0.parquet": parquet(
                pl.DataFrame({"uid": [n % 4, 1], "iid": [100 + n, 105], "event": ["click", "buy"]})
            )
            for n in range(5)
        },
        [
            event
            for n in range(5)
            for event in ((str(n % 4), str(100 + n), MIDNIGHT + n * DAY), ("1", "105", MIDNIGHT + n * DAY))
        ],
        chain=("click", "buy"),
    ),
    "partitions-of-year-month-day": Layout(
        {
            f"year=2024/month={4 + n}/day=1/part-0.parquet": parquet(
                pl.DataFrame({"uid": [n % 4, 1], "iid": [100 + n, 105], "event": ["click", "buy"]})
            )
            for n in range(2)
        },
        [
            event
            for n in range(2)
            for event in (
                (str(n), str(100 + n), MIDNIGHT + (n - 1) * 30 * DAY),
                ("1", "105", MIDNIGHT + (n - 1) * 30 * DAY),
            )
        ],
    ),
    "date-and-clock": Layout(
        {
            "orders.csv": lines(
                "order_no,order_date,order_time,customer_no,sku,product_name,net_price",
                *(f'{n},05/{n + 13}/2024,12:3{n} PM,{n % 4},S{n % 7},Lamp {n % 7},"$1,299.50"' for n in range(9)),
            )
        },
        [(str(n % 4), f"S{n % 7}", T + (n + 12) * DAY + 60 * n) for n in range(9)],
        prices={"S3": 1299.5},
    ),
    "single-quotes": Layout(
        {
            "dump.csv": lines(
                "'user_id','item_id','title','created'",
                *(f"'u{n % 4}','i{n % 7}','It''s a \"lamp\", {n % 7}','2024-05-{n + 1:02d} 12:30:00'" for n in N),
            )
        },
        [(f"u{n % 4}", f"i{n % 7}", T + n * DAY) for n in N],
        titles={"i3": 'It\'s a "lamp", 3'},
    ),
    "spaces-around-quotes": Layout(
        {
            "data.csv": b"\xef\xbb\xbf"
            + lines(
                '" User ID " , " Item ID " , " Event Time " ',
                *(f'"u{n % 4}" , "i, {n % 7}" , "2024-05-{n + 1:02d} 12:30"' for n in N),
                end="\r\n",
            ).encode()
        },
        [(f"u{n % 4}", f"i, {n % 7}", T + n * DAY) for n in N],
    ),
    "document-store": Layout(
        {
            "events.json": json_lines(
                *(
                    {
                        "_id": {"$oid": f"{n:024x}"},
                        "userId": {"$numberLong": str(n % 4)},
                        "itemId": f"i{n % 7}",
                        "ts": {"$date": f"2024-05-{n + 1:02d}T12:30:00Z"},
                        "action": "view",
                    }
                    for n in N
                )
            )
        },
        [(str(n % 4), f"i{n % 7}", T + n * DAY) for n in N],
    ),
    "arrow-file": Layout(
        {
            "log.feather": lambda path: pl.DataFrame(
                {"user": ["a", "b"], "item": ["1", "2"], "time": [T, T + 1]}
            ).write_ipc(path)
        },
        [("a", "1", T), ("b", "2", T + 1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_is_guessed_as_a_person_reads_it(name: str, tmp_path: Path) -> None:
    check(guessed(write(CASES[name], tmp_path)), CASES[name])


def database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table events(user_id text)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shop.db", database, "SQLite database; export each table"),
        ("log.avro", b"Obj\x01" + bytes(99), "Avro file"),
        ("old.xls", b"\xd0\xcf\x11\xe0" + bytes(99), "save it as .xlsx"),
        (
            "matrix.csv",
            lines("user," + ",".join(f"item_{n}" for n in range(8)), *(f"u{u},1,,3,4,5,,2,1" for u in range(5))),
            "a matrix; write one row",
        ),
    ],
)
def test_what_is_no_log_is_named(name, content, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        guess_log(write(Layout({name: content}, []), tmp_path))


def test_what_is_unsure_is_said(tmp_path) -> None:
    rows = [f"u{n % 3};i{n};Crème {n};jour {n}" for n in range(6)]
    (tmp_path / "log.csv").write_bytes(lines("client;produit;nom;date_achat", *rows).encode("cp1252"))
    doubts = " ".join(guess_log(tmp_path / "log.csv").doubts)
    assert "read as cp1252, as in 'Crème 0'" in doubts and "date_achat holds ['jour 0']" in doubts


def test_words_of_names_and_actions() -> None:
    other = ("customer_name", "order_id", "store_id", "data_nascita", "page")
    assert [role_by_words(name) for name in other] == [None] * 5
    assert [role_by_words(name) for name in ("Descrizione articolo", "asiakasnumero")] == ["title", "user_id"]
    undone = ("Removed from Cart", "Order Refunded", "удаление из корзины", "scroll")
    assert [stage_by_words(action) for action in undone] == [None] * 4
    assert [stage_by_words(action) for action in ("Cart Viewed", "Added to Wishlist", "Checkout Started")] == [1, 2, 4]
