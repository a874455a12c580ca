"""Further layouts of public data and exports, with invented rows: what ``genrec init`` guesses is what a person reads.

Each case says the events (user, item, time in seconds) that a person would read, and what else must come along.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from genrec.data.readers.guess import guess_log
from genrec.errors import UserError
from tests.data.readers.layouts import DAY, Layout, T, check, guessed, json_lines, lines, write, zipped

CASES: dict[str, Layout] = {
    "alibaba-chinese-header": Layout(
        {"行为.csv": lines("用户ID,商品ID,商品类目,行为类型,时间戳", f"1,22,5,pv,{T}", f"2,23,6,buy,{T + 9}")},
        [("1", "22", T), ("2", "23", T + 9)],
        actions=["pv", "buy"],
        chain=("pv", "buy"),
    ),
    "japanese-shift-jis": Layout(
        {
            "購買履歴.csv": lines(
                "会員番号,商品コード,商品名,購入日時,数量",
                "0012,A-01,青い傘,2024/05/01 12:30,1",
                "0013,A-02,赤い靴,2024/05/01 12:31,2",
                "0012,A-03,白い皿,2024/05/02 12:30,1",
                end="\r\n",
            ).encode("cp932")
        },
        [("0012", "A-01", T), ("0013", "A-02", T + 60), ("0012", "A-03", T + DAY)],
        titles={"A-01": "青い傘", "A-02": "赤い靴"},
    ),
    "lastfm-360k": Layout(
        {
            "usersha1-artmbid-artname-plays.tsv": lines(
                "00000c2894\t3bd73256\tbetty blowtorch\t2137",
                "00000c2894\tf2fb0ff0\tdie \u00c4rzte\t1099",
                "00001411dc\tf2fb0ff0\tdie \u00c4rzte\t897",
                "00001411dc\t67fb65b5\trammstein\t12",
            )
        },
        [
            ("00000c2894", "3bd73256", 1),
            ("00000c2894", "f2fb0ff0", 2),
            ("00001411dc", "f2fb0ff0", 3),
            ("00001411dc", "67fb65b5", 4),
        ],
    ),
    "taste-profile": Layout(
        {
            "train_triplets.txt": lines(
                "b80344d063b5ccb3212f76538f3d9e43d87dca9e\tSOAKIMP12A8C130995\t1",
                "b80344d063b5ccb3212f76538f3d9e43d87dca9e\tSOBBMDR12A8C13253B\t2",
                "85c1f87fea955d09b4bec2e36aee110927aedf9a\tSOBBMDR12A8C13253B\t1",
            )
        },
        [
            ("b80344d063b5ccb3212f76538f3d9e43d87dca9e", "SOAKIMP12A8C130995", 1),
            ("b80344d063b5ccb3212f76538f3d9e43d87dca9e", "SOBBMDR12A8C13253B", 2),
            ("85c1f87fea955d09b4bec2e36aee110927aedf9a", "SOBBMDR12A8C13253B", 3),
        ],
    ),
    "netflix-prize": Layout(
        {
            "combined_data_1.txt": lines(
                "1:", "1488844,3,2005-09-06", "822109,5,2005-05-13", "2:", "2059652,4,2005-09-05", "822109,2,2005-05-14"
            )
        },
        [
            ("1488844", "1", 1125964800),
            ("822109", "1", 1115942400),
            ("2059652", "2", 1125878400),
            ("822109", "2", 1116028800),
        ],
    ),
    "spotify-mpd": Layout(
        {
            "mpd.slice.0-999.json": json.dumps(
                {
                    "info": {"generated_on": "2017-12-03", "version": "v1"},
                    "playlists": [
                        {
                            "name": "Throwbacks",
                            "pid": 0,
                            "modified_at": T,
                            "tracks": [
                                {
                                    "pos": 0,
                                    "artist_name": "Missy Elliott",
                                    "track_uri": "spotify:track:0UaMYE",
                                    "track_name": "Lose Control",
                                },
                                {
                                    "pos": 1,
                                    "artist_name": "Britney Spears",
                                    "track_uri": "spotify:track:6I9Vza",
                                    "track_name": "Toxic",
                                },
                            ],
                        },
                        {
                            "name": "Rock",
                            "pid": 1,
                            "modified_at": T + 60,
                            "tracks": [
                                {
                                    "pos": 0,
                                    "artist_name": "Britney Spears",
                                    "track_uri": "spotify:track:6I9Vza",
                                    "track_name": "Toxic",
                                }
                            ],
                        },
                    ],
                },
                indent=2,
            )
        },
        [("0", "spotify:track:0UaMYE", T), ("0", "spotify:track:6I9Vza", T), ("1", "spotify:track:6I9Vza", T + 60)],
        titles={"spotify:track:6I9Vza": "Toxic"},
    ),
    "goodreads": Layout(
        {
            "goodreads_interactions.json": json_lines(
                {
                    "user_id": "8842",
                    "book_id": "24375664",
                    "review_id": "5cd4",
                    "rating": 5,
                    "date_added": "Fri Aug 25 13:55:02 -0700 2017",
                    "date_updated": "Mon Oct 09 08:55:59 -0700 2017",
                },
                {
                    "user_id": "8843",
                    "book_id": "18245960",
                    "review_id": "dfdb",
                    "rating": 4,
                    "date_added": "Sun Jul 30 07:44:10 -0700 2017",
                    "date_updated": "Wed Aug 30 00:00:26 -0700 2017",
                },
            )
        },
        [("8842", "24375664", 1503694502), ("8843", "18245960", 1501425850)],
    ),
    "criteo-attribution": Layout(
        {
            "criteo_attribution_dataset.tsv": lines(
                "timestamp\tuid\tcampaign\tconversion\tclick\tcost",
                "0\t20073966\t22589171\t0\t0\t1.0e-05",
                "2\t24607497\t884761\t0\t1\t1.0e-05",
                "5\t20073966\t884761\t1\t1\t1.2e-05",
            )
        },
        [("24607497", "884761", 2), ("20073966", "884761", 5)],
        chain=("impression", "click", "conversion"),
    ),
    "matomo": Layout(
        {
            "matomo_log_link_visit_action.tsv": lines(
                "idlink_va\tidvisitor\tidvisit\tserver_time\tidaction_name\tproductSku\tproductName",
                "1\tba1c5\t10\t2024-05-01 12:30:00\t7\tP1\tBlue lamp",
                "2\tba1c6\t11\t2024-05-01 12:31:00\t7\tP2\tRed cup",
            )
        },
        [("ba1c5", "P1", T), ("ba1c6", "P2", T + 60)],
        titles={"P1": "Blue lamp"},
    ),
    "snowplow": Layout(
        {
            "events.tsv": lines(
                "app_id\tplatform\tcollector_tstamp\tevent\tdomain_userid\tdomain_sessionidx\tse_action\tse_label",
                "shop\tweb\t2024-05-01 12:30:00.123\tstruct\tu-1\t1\tview\tsku-1",
                "shop\tweb\t2024-05-01 12:31:00.456\tstruct\tu-2\t1\tadd-to-cart\tsku-2",
                "shop\tweb\t2024-05-01 12:32:00.000\tstruct\tu-1\t1\tview\tsku-2",
            )
        },
        [("u-1", "sku-1", T), ("u-2", "sku-2", T + 60), ("u-1", "sku-2", T + 120)],
        actions=["view", "add-to-cart", "view"],
    ),
    "woocommerce": Layout(
        {
            "orders-2024.csv": lines(
                '"Order Number","Order Status","Order Date","Customer User ID","Email (Billing)","SKU","Item Name",'
                '"Quantity (- Refund)","Item Cost"',
                '1001,Completed,"2024-05-01 12:30",17,ann@x.org,LAMP-1,"Blue lamp, large",1,19.90',
                '1001,Completed,"2024-05-01 12:30",17,ann@x.org,CUP-2,"Red cup",2,4.50',
                '1002,Refunded,"2024-05-02 12:30",18,bob@x.org,CUP-2,"Red cup",-1,4.50',
                '1003,Completed,"2024-05-02 12:30",18,bob@x.org,LAMP-1,"Blue lamp, large",1,19.90',
            )
        },
        [("17", "LAMP-1", T), ("17", "CUP-2", T), ("18", "LAMP-1", T + DAY)],
        titles={"LAMP-1": "Blue lamp, large"},
        prices={"CUP-2": 4.5},
    ),
    "microseconds": Layout(
        {"log.csv": lines("user,item,ts", f"a,1,{T}123456", f"b,2,{T + 1}000001")},
        [("a", "1", T), ("b", "2", T + 1)],
    ),
    "day-first-by-one-row": Layout(
        {"log.csv": lines("user,item,date", "a,1,01/05/2024 12:30", "b,2,13/05/2024 12:30", "a,2,02/05/2024 12:30")},
        [("a", "1", T), ("b", "2", T + 12 * DAY), ("a", "2", T + DAY)],
    ),
    "one-row-per-session": Layout(
        {
            "sessions.csv": lines(
                "session_id,timestamp,item_1,item_2,item_3", f"s1,{T},5,7,", f"s2,{T + 60},7,8,9", f"s3,{T + 90},5,,"
            )
        },
        [
            ("s1", "5", T),
            ("s1", "7", T),
            ("s2", "7", T + 60),
            ("s2", "8", T + 60),
            ("s2", "9", T + 60),
            ("s3", "5", T + 90),
        ],
    ),
    "decimal-comma": Layout(
        {
            "verkauf.csv": lines(
                "Kunde;Artikel;Bezeichnung;Preis;Datum",
                "00017;0042;Blaue Lampe;1.299,05;01.05.2024 12:30",
                "00018;0043;Rote Tasse;4,50;02.05.2024 12:30",
                "00017;0043;Rote Tasse;4,50;14.05.2024 12:30",
            )
        },
        [("00017", "0042", T), ("00018", "0043", T + DAY), ("00017", "0043", T + 13 * DAY)],
        titles={"0042": "Blaue Lampe"},
        prices={"0042": 1299.05, "0043": 4.5},
    ),
    "utf-16-with-mark": Layout(
        {"log.csv": lines("user\titem\ttime", f"zo\u00eb\t1\t{T}", f"b\u00f6b\t2\t{T + 1}").encode("utf-16")},
        [("zo\u00eb", "1", T), ("b\u00f6b", "2", T + 1)],
    ),
    "repeated-column": Layout(
        {"log.csv": lines("user_id,item_id,timestamp,price,price", f"a,1,{T},3,4", f"b,2,{T + 1},5,6")},
        [("a", "1", T), ("b", "2", T + 1)],
        prices={"1": 3.0},
    ),
    "gzip-inside-zip": Layout(
        {
            "export.zip": zipped(
                {"log.csv.gz": gzip.compress(lines("user,item,time", f"a,1,{T}", f"b,2,{T + 1}").encode())}
            )
        },
        [("a", "1", T), ("b", "2", T + 1)],
    ),
    "an-empty-file-between": Layout(
        {
            "2024-05-01.csv": lines("user,item,time", f"a,1,{T}", f"b,2,{T + 1}"),
            "2024-05-02.csv": "",
            "2024-05-03.csv": lines("user,item,time"),
            "2024-05-04.csv": lines("user,item,time", f"a,2,{T + 3 * DAY}"),
        },
        [("a", "1", T), ("b", "2", T + 1), ("a", "2", T + 3 * DAY)],
    ),
    "row-number-as-index": Layout(
        {"log.csv": lines(",index,user_id,item_id,timestamp", f"0,0,a,1,{T}", f"1,1,b,2,{T + 1}", f"2,2,a,2,{T + 2}")},
        [("a", "1", T), ("b", "2", T + 1), ("a", "2", T + 2)],
    ),
    "flags-as-actions": Layout(
        {
            "log.csv": lines(
                "user_id,item_id,timestamp,is_click,is_purchase",
                f"a,1,{T},True,False",
                f"a,2,{T + 1},False,False",
                f"b,1,{T + 2},True,True",
            )
        },
        [("a", "1", T), ("b", "1", T + 2)],
        actions=["click", "purchase"],
        chain=("impression", "click", "purchase"),
    ),
    "boolean-action": Layout(
        {
            "log.csv": lines(
                "user_id,item_id,timestamp,clicked", f"a,1,{T},true", f"a,2,{T + 1},false", f"b,1,{T + 2},true"
            )
        },
        [("a", "1", T), ("b", "1", T + 2)],
        actions=["click", "click"],
    ),
    "negative-ratings": Layout(
        {
            "jester.csv": lines(
                "userId,jokeId,rating,timestamp",
                f"1,5,-8.79,{T}",
                f"1,7,3.25,{T + 1}",
                f"2,5,9.1,{T + 2}",
                f"2,7,-1.5,{T + 3}",
            )
        },
        [("1", "7", T + 1), ("2", "5", T + 2)],  # below 0 is a dislike: left out by rule
    ),
    "zeros-in-both-tables": Layout(
        {
            "orders.csv": lines(
                "customer,sku,date",
                "007,0001,2024-05-01 12:30:00",
                "008,0002,2024-05-02 12:30:00",
                "007,0002,2024-05-03 12:30:00",
            ),
            "products.csv": lines("sku,name,price", "0001,Lamp,3", "0002,Cup,4"),
        },
        [("007", "0001", T), ("008", "0002", T + DAY), ("007", "0002", T + 2 * DAY)],
        titles={"0001": "Lamp"},
        prices={"0002": 4.0},
    ),
    "mind-with-history": Layout(
        {
            "behaviors.tsv": lines(
                "1\tU1\t11/11/2019 9:05:58 AM\tN5 N6\tN1-1 N2-0",
                "2\tU2\t11/12/2019 6:11:30 PM\t\tN3-0 N2-1 N1-0",
                "3\tU1\t11/14/2019 7:01:48 AM\tN5 N6 N1\tN2-1",
            ),
            "news.tsv": lines(
                "N1\tsports\tnfl\tGame tonight\tLong\thttps://x/1.html\t[]\t[]",
                "N2\tnews\tus\tRain\tWet\thttps://x/2.html\t[]\t[]",
                "N3\tnews\tus\tSun\tDry\thttps://x/3.html\t[]\t[]",
                "N5\tnews\tus\tSnow\tCold\thttps://x/5.html\t[]\t[]",
                "N6\tnews\tus\tFog\tGrey\thttps://x/6.html\t[]\t[]",
            ),
        },
        [
            ("U1", "N5", 1573463156),
            ("U1", "N6", 1573463157),
            ("U1", "N1", 1573463158),
            ("U2", "N2", 1573582290),
            ("U1", "N2", 1573714908),
        ],
    ),
    "retailrocket-category-tree": Layout(
        {
            "events.csv": lines(
                "timestamp,visitorid,event,itemid,transactionid",
                f"{T}000,257597,view,355908,",
                f"{T + 5}000,992329,addtocart,248676,",
                f"{T + 9}000,257597,transaction,248676,4000",
            ),
            "item_properties_part1.csv": lines(
                "timestamp,itemid,property,value",
                f"{T - 99}000,355908,categoryid,1338",
                f"{T - 99}000,355908,888,1116713",
                f"{T - 50}000,248676,categoryid,1016",
            ),
            "category_tree.csv": lines("categoryid,parentid", "1016,213", "1338,1016", "213,"),
        },
        [("257597", "355908", T), ("992329", "248676", T + 5), ("257597", "248676", T + 9)],
        categories={"355908": ["213", "1016", "1338"], "248676": ["213", "1016"]},
    ),
    "star-schema": Layout(
        {
            "fact_sales.csv": lines(
                "sale_id,customer_key,product_key,date_key,units",
                "1,11,21,20240501,1",
                "2,12,22,20240502,3",
                "3,11,22,20240503,1",
            ),
            "dim_product.csv": lines("product_key,product_name,category_name", "21,Lamp,Home", "22,Cup,Kitchen"),
            "dim_customer.csv": lines("customer_key,country,gender", "11,DE,f", "12,FR,m"),
        },
        [("11", "21", 1714521600), ("12", "22", 1714608000), ("11", "22", 1714694400)],
        titles={"21": "Lamp"},
        categories={"22": ["Kitchen"]},
    ),
    "search-log": Layout(
        {
            "searches.csv": lines(
                "session,search_query,clicked_product,clicked_at",
                f"s1,blue lamp,p1,{T}",
                f"s2,cup,p2,{T + 1}",
                f"s1,red cup,p2,{T + 2}",
            ),
        },
        [("s1", "p1", T), ("s2", "p2", T + 1), ("s1", "p2", T + 2)],
        queries=["blue lamp", "cup", "red cup"],
    ),
    "algolia-json": Layout(
        {
            "insights.jsonl": json_lines(
                {"eventType": "click", "userToken": "u1", "timestamp": T * 1000, "objectIDs": ["p1"], "queryID": "q"},
                {
                    "eventType": "conversion",
                    "userToken": "u1",
                    "timestamp": T * 1000 + 5000,
                    "objectIDs": ["p1", "p2"],
                    "queryID": "q",
                },
            )
        },
        [("u1", "p1", T), ("u1", "p1", T + 5), ("u1", "p2", T + 5)],
        actions=["click", "conversion", "conversion"],
    ),
    "firebase-epoch-in-text": Layout(
        {
            "log.jsonl": json_lines(
                {"uid": "u1", "content_id": "c1", "event_timestamp": f"{T}123456"},
                {"uid": "u2", "content_id": "c2", "event_timestamp": f"{T + 1}123456"},
            )
        },
        [("u1", "c1", T), ("u2", "c2", T + 1)],
    ),
    "spaces-around-fields": Layout(
        {"log.csv": lines("user_id , item_id , timestamp", f"a , 1 , {T}", f"b , 2 , {T + 1}", f"a , 2 , {T + 2}")},
        [("a", "1", T), ("b", "2", T + 1), ("a", "2", T + 2)],
    ),
    "fixed-comment-lines": Layout(
        {
            "log.csv": lines(
                "# exported 2024-05-03",
                "# rows: 3",
                "user_id,item_id,timestamp",
                f"a,1,{T}",
                f"b,2,{T + 1}",
                f"a,2,{T + 2}",
            )
        },
        [("a", "1", T), ("b", "2", T + 1), ("a", "2", T + 2)],
    ),
    "gowalla": Layout(
        {
            "checkins.txt": lines(
                "0\t2010-10-19T23:55:27Z\t30.2359\t-97.7951\t22847", "1\t2010-10-17T23:42:03Z\t30.2557\t-97.7633\t22847"
            )
        },
        [("0", "22847", 1287532527), ("1", "22847", 1287358923)],
    ),
    "foursquare": Layout(
        {
            "checkins.txt": lines(
                "470\t49bbd6\t4bf58d\tCraft\t40.719\t-74.002\t-240\tTue Apr 03 18:00:09 +0000 2012",
                "979\t4a43c0\t4bf58d\tBridge\t40.606\t-74.044\t-240\tTue Apr 03 18:00:25 +0000 2012",
            )
        },
        [("470", "49bbd6", 1333476009), ("979", "4a43c0", 1333476025)],
    ),
    "ta-feng": Layout(
        {
            "merged.csv": lines(
                '"TRANSACTION_DT","CUSTOMER_ID","PRODUCT_ID","SALES_PRICE"',
                '"11/1/2000","01104905  ",4710199010372,30',
                '"11/21/2000","00418683  ",4710857472535,46',
            )
        },
        [("01104905", "4710199010372", 973036800), ("00418683", "4710857472535", 974764800)],
    ),
    "steam": Layout(
        {
            "steam-200k.csv": lines(
                '151603712,"Skyrim",purchase,1.0,0',
                '151603712,"Skyrim",play,273.0,0',
                '187131847,"Dota 2",purchase,1.0,0',
            )
        },
        [("151603712", "Skyrim", 1), ("151603712", "Skyrim", 2), ("187131847", "Dota 2", 3)],
    ),
    "adressa": Layout(
        {
            "week.jsonl": json_lines(
                {"eventId": 1, "time": T, "userId": "cx:1", "id": "n1", "title": "News"},
                {"eventId": 2, "time": T + 1, "userId": "cx:2", "id": "n2", "title": "More"},
            )
        },
        [("cx:1", "n1", T), ("cx:2", "n2", T + 1)],
    ),
    "nested-orders": Layout(
        {
            "orders.json": json.dumps(
                [
                    {
                        "id": 1,
                        "customer": {"id": "c1"},
                        "created_at": "2024-05-01T12:30:00Z",
                        "line_items": [{"product_id": 7, "title": "Lamp"}, {"product_id": 8, "title": "Cup"}],
                    },
                    {
                        "id": 2,
                        "customer": {"id": "c2"},
                        "created_at": "2024-05-02T12:30:00Z",
                        "line_items": [{"product_id": 8, "title": "Cup"}],
                    },
                ]
            )
        },
        [("c1", "7", T), ("c1", "8", T), ("c2", "8", T + DAY)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_is_guessed_as_a_person_reads_it(name: str, tmp_path: Path) -> None:
    check(guessed(write(CASES[name], tmp_path)), CASES[name])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"user_id,item_id,timestamp\n", "no table with rows"),
        ("log.csv", b"", "empty"),
        ("log.zip", zipped({"a.csv": b"user,item\n", "b.csv": b"sku\n"}), "holds 2 files .*unpack it"),
    ],
)
def test_what_holds_no_table_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        guess_log(tmp_path / name)
