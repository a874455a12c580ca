"""Layouts of published data sets and of exports, with invented rows: each goes in by options alone, and most are
guessed."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from genrec.data.readers import read_log
from genrec.data.schema import join_parts
from tests.data.readers.layouts import DAY, Layout, T, check, guessed, json_lines, lines, parquet, write, zipped

LAYOUTS: dict[str, Layout] = {
    "taobao": Layout(
        {
            "UserBehavior.csv": lines(
                f"1,2268318,2520377,pv,{T}", f"1,2333346,2520771,buy,{T + 5}", f"2,2268318,2520377,cart,{T + 9}"
            )
        },
        [("1", "2268318", T), ("1", "2333346", T + 5), ("2", "2268318", T + 9)],
        {
            "names": ["user_id", "item_id", "category", "action", "timestamp"],
            "item_columns": {"category": "category"},
            "chain": ["pv", "cart", "buy"],
        },
        actions=["pv", "buy", "cart"],
    ),
    "tmall": Layout(
        {
            "user_log_format1.csv": lines(
                "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type",
                *(
                    f"328862,{323294 + n},833,2882,2661.0,{829 if n < 15 else 1111},{0 if n < 20 else 2}"
                    for n in range(24)
                ),
            ),
            "user_info_format1.csv": lines("user_id,age_range,gender", "328862,6.0,1.0"),
        },
        [("328862", str(323294 + n), 967_507_200 if n < 15 else 973_900_800) for n in range(24)],
        {
            "events": "user_log_format1.csv",
            "users": "user_info_format1.csv",
            "columns": {"timestamp": "time_stamp", "action": "action_type"},
            "timestamp_format": "%m%d",
            "actions": {0: "click", 1: "cart", 2: "purchase", 3: "favourite"},
            "chain": ["click", "favourite", "cart", "purchase"],
        },
    ),
    "yoochoose": Layout(
        {
            "yoochoose-clicks.dat": lines(
                "1,2014-04-07T10:51:09.277Z,214536502,0",
                "1,2014-04-07T10:54:09.868Z,214536500,0",
                "2,2014-04-07T13:56:37.614Z,214662742,S",
            ),
            "yoochoose-buys.dat": lines(
                "1,2014-04-07T10:57:09.868Z,214536500,12462,1", "2,2014-04-07T14:02:00.000Z,214662742,1046,2"
            ),
        },
        [
            ("1", "214536500", 1396868229),
            ("2", "214662742", 1396879320),
            ("1", "214536502", 1396867869),
            ("1", "214536500", 1396868049),
            ("2", "214662742", 1396878997),
        ],
        {
            "events": [
                {
                    "file": "yoochoose-buys.dat",
                    "names": ["user_id", "timestamp", "item_id", "price", "quantity"],
                    "action": "purchase",
                },
                {
                    "file": "yoochoose-clicks.dat",
                    "names": ["user_id", "timestamp", "item_id", "category"],
                    "action": "click",
                },
            ],
            "chain": ["click", "purchase"],
        },
    ),
    "diginetica": Layout(
        {
            "train-item-views.csv": lines(
                "sessionId;userId;itemId;timeframe;eventdate",
                "1;NA;81766;526309;2016-05-09",
                "1;NA;31331;1031018;2016-05-09",
                "2;NA;31331;243569;2016-05-10",
            ),
            "products.csv": lines(
                "itemId;pricelog2;product.name.tokens", "81766;10;4875,776,56689", "31331;9;4875,776"
            ),
            "product-categories.csv": lines("itemId;categoryId", "81766;1096", "31331;1177"),
        },
        [("1", "81766", 1462752000), ("1", "31331", 1462752000), ("2", "31331", 1462838400)],
        {
            "events": "train-item-views.csv",
            "columns": {"user_id": "sessionId", "item_id": "itemId", "timestamp": "eventdate"},
            "items": "products.csv",
            "item_columns": {"item_id": "itemId", "title": "product.name.tokens", "category": "categoryId"},
            "item_joins": [{"file": "product-categories.csv", "on": "itemId"}],
        },
        titles={"81766": "4875,776,56689"},
        categories={"81766": ["1096"]},
    ),
    "book-crossing": Layout(
        {
            "BX-Book-Ratings.csv": lines(
                '"User-ID";"ISBN";"Book-Rating"',
                '"276725";"034545104X";"0"',
                '"276726";"0155061224";"5"',
                '"276725";"0155061224";"3"',
                end="\r\n",
            ).encode("latin-1"),
            "BX-Books.csv": lines(
                '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication"',
                '"034545104X";"Flesh Tones: A \\"Novel\\"";"M. J. Rose";"2002"',
                '"0155061224";"L\'\xe9t\xe9 &amp; l\'hiver";"Andr\xe9 G\xeede";"2001"',
                end="\r\n",
            ).encode("latin-1"),
        },
        [("276725", "034545104X", 2), ("276726", "0155061224", 3), ("276725", "0155061224", 4)],
        {
            "events": "BX-Book-Ratings.csv",
            "columns": {"user_id": "User-ID", "item_id": "ISBN"},
            "timestamp_unit": "order",
            "items": "BX-Books.csv",
            "item_columns": {"item_id": "ISBN", "title": "Book-Title", "brand": "Book-Author"},
        },
        titles={"034545104X": 'Flesh Tones: A "Novel"', "0155061224": "L'\xe9t\xe9 & l'hiver"},
    ),
    "mind": Layout(
        {
            "behaviors.tsv": lines(
                "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0",
                "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-1 N35729-0",
                "3\tU13740\t11/14/2019 7:01:48 AM\tN55189\tN39317-1",
            ),
            "news.tsv": lines(
                'N55689\tsports\tfootballnfl\tCharles "Chuck" Rogers\tA 6\' 4" star\thttps://x/1.html\t[]\t[]',
                "N35729\tnews\tnewsus\tPorsche launches\t\thttps://x/2.html\t[]\t[]",
                'N39317\tlifestyle\troyal\tThe "Brands\tShop now\thttps://x/3.html\t[]\t[]',
                "N20678\tnews\tnewsus\tRain\tWet\thttps://x/4.html\t[]\t[]",
            ),
        },
        [("U13740", "N55689", 1573463158), ("U91836", "N39317", 1573582290), ("U13740", "N39317", 1573714908)],
        {
            "events": "behaviors.tsv",
            "names": ["request_id", "user_id", "timestamp", "history", "item_id"],
            "item_separator": " ",
            "item_label": "-",
            "actions": {0: "impression", 1: "click"},
            "chain": ["impression", "click"],
            "items": "news.tsv",
            "item_names": ["item_id", "topic", "subtopic", "title", "text", "url", "title_entities", "text_entities"],
            "item_columns": {"category": ["topic", "subtopic"]},
        },
        titles={"N55689": 'Charles "Chuck" Rogers'},
        categories={"N55689": ["sports", "footballnfl"]},
        guess=False,  # the guess reads the history as well: "mind-with-history" of test_more_layouts.py
    ),
    "lastfm-1k": Layout(
        {
            "userid-timestamp-artid-artname-traid-traname.tsv": lines(
                "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFuck Me Im Famous",
                "user_000001\t2009-05-04T13:54:10Z\ta7f7df4a\t坂本龍一\tf7c1f8f8\tComposition 0919",
                'user_000002\t2009-05-03T15:48:25Z\ta7f7df4a\t坂本龍一\t475d4e50\t"Hibari" Live',
            )
        },
        [
            ("user_000001", "Deep Dish / Fuck Me Im Famous", 1241478537),
            ("user_000001", "坂本龍一 / Composition 0919", 1241445250),
            ("user_000002", '坂本龍一 / "Hibari" Live', 1241365705),
        ],
        {
            "names": ["user_id", "timestamp", "artist_id", "artist", "track_id", "track"],
            "columns": {"item_id": ["artist", "track"]},
        },
        guess=False,
    ),
    "instacart": Layout(
        {
            "orders.csv": lines(
                "order_id,user_id,eval_set,order_number,order_dow", "11,1,prior,1,2", "12,1,prior,2,3", "13,2,prior,1,5"
            ),
            "order_products__prior.csv": lines(
                "order_id,product_id,add_to_cart_order,reordered",
                "11,196,1,0",
                "11,14084,2,0",
                "12,196,1,1",
                "13,14084,1,0",
            ),
            "products.csv": lines(
                "product_id,product_name,aisle_id,department_id",
                "196,Soda,77,7",
                '14084,"Organic Milk, ""Whole""",91,16',
            ),
            "aisles.csv": lines("aisle_id,aisle", "77,soft drinks", "91,soy lactosefree"),
            "departments.csv": lines("department_id,department", "7,beverages", "16,dairy eggs"),
        },
        [("1", "196", 1), ("1", "14084", 1), ("1", "196", 2), ("2", "14084", 1)],
        {
            "events": "order_products__prior.csv",
            "joins": [{"file": "orders.csv", "on": "order_id"}],
            "columns": {"item_id": "product_id", "timestamp": "order_number"},
            "timestamp_unit": "order",
            "items": "products.csv",
            "item_columns": {"item_id": "product_id", "title": "product_name", "category": ["department", "aisle"]},
            "item_joins": [
                {"file": "aisles.csv", "on": "aisle_id"},
                {"file": "departments.csv", "on": "department_id"},
            ],
        },
        titles={"196": "Soda", "14084": 'Organic Milk, "Whole"'},
    ),
    "retailrocket": Layout(
        {
            "events.csv": lines(
                "timestamp,visitorid,event,itemid,transactionid",
                "1433221332117,257597,view,355908,",
                "1433224214164,992329,view,248676,",
                "1433221999827,992329,addtocart,248676,",
                "1433222531378,992329,transaction,248676,4000",
            ),
            "item_properties_part1.csv": lines(
                "timestamp,itemid,property,value",
                "1435460400000,355908,categoryid,1338",
                "1441508400000,355908,888,1116713 960601",
            ),
            "item_properties_part2.csv": lines(
                "timestamp,itemid,property,value",
                "1439089200000,248676,categoryid,1114",
                "1439089300000,248676,categoryid,1115",
            ),
            "category_tree.csv": lines("categoryid,parentid", "1338,1114", "1115,"),
        },
        [
            ("257597", "355908", 1433221332),
            ("992329", "248676", 1433224214),
            ("992329", "248676", 1433221999),
            ("992329", "248676", 1433222531),
        ],
        {
            "events": "events.csv",
            "columns": {"user_id": "visitorid", "item_id": "itemid", "action": "event"},
            "chain": ["view", "addtocart", "transaction"],
            "items": "item_properties_part*.csv",
            "item_properties": {"item": "itemid", "property": "property", "value": "value"},
            "item_columns": {"category": "categoryid"},
        },
        categories={"355908": ["1338"], "248676": ["1115"]},
        actions=["view", "view", "addtocart", "transaction"],
    ),
    "rees46": Layout(
        {
            "2019-Oct.csv": lines(
                "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session",
                "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde",
                "2019-10-01 00:00:05 UTC,purchase,3900821,2053013552326770905,appliances.environment.water_heater,"
                "aqua,33.20,554748717,9333dfbd",
            )
        },
        [("541312140", "44600062", 1569888000), ("554748717", "3900821", 1569888005)],
        {
            "columns": {"timestamp": "event_time", "action": "event_type", "item_id": "product_id"},
            "item_columns": {"category": "category_code", "brand": "brand", "price": "price"},
            "category_separator": ".",
            "chain": ["view", "cart", "purchase"],
        },
        prices={"3900821": 33.2},
    ),
    "h-and-m": Layout(
        {
            "transactions_train.csv": lines(
                "t_dat,customer_id,article_id,price,sales_channel_id",
                "2018-09-20,000058a12d,0663713001,0.050831,2",
                "2018-09-21,000058a12d,0541518023,0.030492,2",
                "2018-09-21,00007d2de8,0663713001,0.0508,1",
            ),
            "articles.csv": lines(
                "article_id,product_code,prod_name,product_type_name,product_group_name,detail_desc",
                "0663713001,663713,Atlanta Push Body,Bra,Underwear,Lace push-up",
                '0541518023,541518,Rae Push,Bra,Underwear,"Microfibre, soft"',
            ),
            "customers.csv": lines(
                "customer_id,FN,age,postal_code", "000058a12d,,49.0,52043ee", "00007d2de8,1.0,25.0,2973abc"
            ),
        },
        [
            ("000058a12d", "0663713001", 1537401600),
            ("000058a12d", "0541518023", 1537488000),
            ("00007d2de8", "0663713001", 1537488000),
        ],
        {
            "events": "transactions_train.csv",
            "columns": {"user_id": "customer_id", "item_id": "article_id", "timestamp": "t_dat"},
            "items": "articles.csv",
            "item_columns": {
                "item_id": "article_id",
                "title": "prod_name",
                "text": "detail_desc",
                "category": ["product_group_name", "product_type_name"],
            },
            "users": "customers.csv",
            "user_columns": {"user_id": "customer_id"},
        },
        titles={"0663713001": "Atlanta Push Body"},
    ),
    "yelp": Layout(
        {
            "yelp_academic_dataset_review.json": json_lines(
                {
                    "review_id": "KU",
                    "user_id": "mh_-eMZ6K5",
                    "business_id": "XQfwVwDr",
                    "stars": 3.0,
                    "text": "If you\ndecide",
                    "date": "2018-07-07 22:09:11",
                },
                {
                    "review_id": "BT",
                    "user_id": "OyoGAe7OKp",
                    "business_id": "7ATYjTIg",
                    "stars": 5.0,
                    "text": "I've",
                    "date": "2012-01-03 15:28:18",
                },
            ),
            "yelp_academic_dataset_business.json": json_lines(
                {
                    "business_id": "XQfwVwDr",
                    "name": "Turning Point",
                    "city": "Wales",
                    "attributes": {"WiFi": "u'free'"},
                    "categories": "Restaurants, Breakfast & Brunch",
                    "hours": None,
                },
                {
                    "business_id": "7ATYjTIg",
                    "name": "Body Cycle",
                    "city": "Philadelphia",
                    "attributes": None,
                    "categories": "Gyms, Yoga",
                    "hours": {"Monday": "6:30-20:30"},
                },
            ),
        },
        [("mh_-eMZ6K5", "XQfwVwDr", 1531001351), ("OyoGAe7OKp", "7ATYjTIg", 1325604498)],
        {
            "events": "yelp_academic_dataset_review.json",
            "columns": {"item_id": "business_id", "timestamp": "date"},
            "items": "yelp_academic_dataset_business.json",
            "item_columns": {"item_id": "business_id", "title": "name", "category": "categories"},
            "category_separator": ", ",
        },
        titles={"XQfwVwDr": "Turning Point"},
    ),
    "amazon-personalize": Layout(
        {
            "interactions.csv": lines(
                "USER_ID,ITEM_ID,EVENT_TYPE,TIMESTAMP", f"196,242,click,{T}", f"186,302,purchase,{T + 3}"
            ),
            "items.csv": lines("ITEM_ID,PRODUCT_NAME,GENRES,PRICE", "242,Lamp,Home|Lamps,3.5", "302,Cup,Kitchen,2"),
        },
        [("196", "242", T), ("186", "302", T + 3)],
        {
            "events": "interactions.csv",
            "columns": {"user_id": "USER_ID", "item_id": "ITEM_ID", "timestamp": "TIMESTAMP", "action": "EVENT_TYPE"},
            "chain": ["click", "purchase"],
            "items": "items.csv",
            "item_columns": {"item_id": "ITEM_ID", "title": "PRODUCT_NAME", "category": "GENRES", "price": "PRICE"},
        },
        titles={"242": "Lamp"},
        categories={"242": ["Home", "Lamps"]},
        prices={"302": 2.0},
    ),
    "ga4": Layout(
        {
            "events_20240501.json": json_lines(
                {
                    "event_date": "20240501",
                    "event_timestamp": str(T * 1_000_000),
                    "event_name": "page_view",
                    "user_pseudo_id": "123.456",
                    "event_params": [{"key": "page", "value": {"string_value": "/"}}],
                    "items": [],
                },
                {
                    "event_date": "20240501",
                    "event_timestamp": str((T + 1) * 1_000_000),
                    "event_name": "view_item",
                    "user_pseudo_id": "123.456",
                    "event_params": [{"key": "search_term", "value": {"string_value": "red lamp"}}],
                    "items": [
                        {
                            "item_id": "SKU1",
                            "item_name": "Lamp &amp; Co",
                            "item_brand": "Vela",
                            "item_category": "Home",
                            "price": 3.5,
                        }
                    ],
                },
                {
                    "event_date": "20240501",
                    "event_timestamp": str((T + 9) * 1_000_000),
                    "event_name": "purchase",
                    "user_pseudo_id": "77.1",
                    "event_params": [],
                    "items": [
                        {
                            "item_id": "SKU1",
                            "item_name": "Lamp &amp; Co",
                            "item_brand": "Vela",
                            "item_category": "Home",
                            "price": 3.5,
                        },
                        {
                            "item_id": "SKU2",
                            "item_name": "Cup",
                            "item_brand": "Vela",
                            "item_category": "Kitchen",
                            "price": 2.0,
                        },
                    ],
                },
            )
        },
        [("123.456", "SKU1", T + 1), ("77.1", "SKU1", T + 9), ("77.1", "SKU2", T + 9)],
        {
            "columns": {
                "user_id": "user_pseudo_id",
                "item_id": "items.item_id",
                "timestamp": "event_timestamp",
                "action": "event_name",
                "query": "event_params[key=search_term].value.string_value",
            },
            "item_columns": {
                "title": "items.item_name",
                "brand": "items.item_brand",
                "category": "items.item_category",
                "price": "items.price",
            },
            "chain": ["view_item", "add_to_cart", "purchase"],
        },
        titles={"SKU1": "Lamp & Co"},
        actions=["view_item", "purchase", "purchase"],
    ),
    "otto": Layout(
        {
            "train.jsonl": json_lines(
                {
                    "session": 0,
                    "events": [
                        {"aid": 1517085, "ts": T * 1000 + 278, "type": "clicks"},
                        {"aid": 1563459, "ts": (T + 60) * 1000, "type": "carts"},
                    ],
                },
                {"session": 1, "events": [{"aid": 424964, "ts": (T + 2) * 1000, "type": "orders"}]},
            )
        },
        [("0", "1517085", T), ("0", "1563459", T + 60), ("1", "424964", T + 2)],
        {
            "columns": {
                "user_id": "session",
                "item_id": "events.aid",
                "timestamp": "events.ts",
                "action": "events.type",
            },
            "chain": ["clicks", "carts", "orders"],
        },
        actions=["clicks", "carts", "orders"],
    ),
    "shopify": Layout(
        {
            "orders_export_1.csv": lines(
                "Name,Email,Financial Status,Paid at,Subtotal,Lineitem quantity,Lineitem name,Lineitem "
                "price,Lineitem sku,Created at,Vendor",
                "#1001,ann@example.com,paid,2024-05-01 08:30:05 -0400,40.00,1,Red Lamp,35.00,LAMP-1,2024-05-01 "
                "08:30:00 -0400,Vela",
                "#1001,ann@example.com,,,,2,Cup,2.50,CUP-1,2024-05-01 08:30:00 -0400,Vela",
                "#1002,bob@example.com,paid,2024-05-02 09:00:00 -0400,2.50,1,Cup,2.50,CUP-1,2024-05-02 08:30:00 "
                "-0400,Vela",
            )
        },
        [("ann@example.com", "LAMP-1", T), ("ann@example.com", "CUP-1", T), ("bob@example.com", "CUP-1", T + DAY)],
        {
            "columns": {
                "user_id": "Email",
                "item_id": "Lineitem sku",
                "timestamp": "Created at",
                "quantity": "Lineitem quantity",
            },
            "item_columns": {"title": "Lineitem name", "price": "Lineitem price", "brand": "Vendor"},
            "action": "purchase",
        },
        titles={"LAMP-1": "Red Lamp"},
        prices={"CUP-1": 2.5},
    ),
    "german-excel": Layout(
        {
            "Bestellungen.csv": lines(
                "Kundennummer;Artikelnummer;Bezeichnung;Warengruppe;Menge;Einzelpreis;Datum",
                "K17;A-1;Stehlampe Größe M;Möbel;1;1.299,05;01.05.2024 12:30",
                "K17;A-2;Käsemesser;Küche;2;12,50;13.05.2024 12:30",
                "K18;A-2;Käsemesser;Küche;-1;12,50;14.05.2024 12:30",
                end="\r\n",
            ).encode("cp1252")
        },
        [("K17", "A-1", T), ("K17", "A-2", T + 12 * DAY)],
        {
            "columns": {
                "user_id": "Kundennummer",
                "item_id": "Artikelnummer",
                "timestamp": "Datum",
                "quantity": "Menge",
            },
            "item_columns": {"title": "Bezeichnung", "category": "Warengruppe", "price": "Einzelpreis"},
        },
        titles={"A-1": "Stehlampe Größe M", "A-2": "Käsemesser"},
        prices={"A-1": 1299.05, "A-2": 12.5},
    ),
    "mysql-dump": Layout(
        {
            "orders.txt": lines(
                "customer_id\tproduct_id\tproduct_name\tsearch_term\tcreated_at",
                '7\t3\tLamp 12" red\t\\N\t2024-05-01 12:30:00',
                "\\N\t4\tCup\t\\N\t2024-05-01 12:31:00",
                '8\t3\tLamp 12" red\tlamp\t2024-05-01 12:32:00',
            )
        },
        [("7", "3", T), ("8", "3", T + 120)],
        {
            "columns": {
                "user_id": "customer_id",
                "item_id": "product_id",
                "timestamp": "created_at",
                "query": "search_term",
            },
            "item_columns": {"title": "product_name"},
        },
        titles={"3": 'Lamp 12" red'},
        queries=[None, "lamp"],
    ),
    "movielens-1m-dat": Layout(
        {
            "ratings.dat": lines("1::1193::5::978300760", "1::661::3::978302109", "2::1193::4::978298413"),
            "movies.dat": lines("1193::Été (1975)::Drama", "661::Giant Peach::Animation|Children's").encode("latin-1"),
        },
        [("1", "1193", 978300760), ("1", "661", 978302109), ("2", "1193", 978298413)],
        {
            "events": "ratings.dat",
            "names": ["user_id", "item_id", "rating", "timestamp"],
            "items": "movies.dat",
            "item_names": ["item_id", "title", "category"],
        },
        titles={"661": "Giant Peach", "1193": "Été (1975)"},
        guess=True,
    ),
    "spark-partitions": Layout(
        {
            "day=2024-05-01/part-0000-abc": parquet(
                pl.DataFrame(
                    {
                        "customer_id": [1, 2],
                        "sku": ["a", "b"],
                        "event_time": pl.Series([T, T + 1]).cast(pl.Datetime("ms")),
                    }
                ).with_columns(pl.from_epoch(pl.Series([T, T + 1])).alias("event_time"))
            ),
            "day=2024-05-02/part-0000-abc": parquet(
                pl.DataFrame({"customer_id": [1], "sku": ["b"]}).with_columns(
                    pl.from_epoch(pl.Series([T + DAY])).alias("event_time")
                )
            ),
            "_SUCCESS": "",
        },
        [("1", "a", T), ("2", "b", T + 1), ("1", "b", T + DAY)],
        {"columns": {"user_id": "customer_id", "item_id": "sku", "timestamp": "event_time"}},
    ),
    "json-array": Layout(
        {
            "export.json": json.dumps(
                {
                    "exported": "2024",
                    "rows": [
                        {"user": {"id": 5}, "product": {"id": 9, "name": "Lamp"}, "at": "2024-05-01T12:30:00+00:00"},
                        {"user": {"id": 6}, "product": {"id": 9, "name": "Lamp"}, "at": "2024-05-01T12:31:00+00:00"},
                    ],
                },
                indent=1,
            )
        },
        [("5", "9", T), ("6", "9", T + 60)],
        {
            "columns": {"user_id": "user.id", "item_id": "product.id", "timestamp": "at"},
            "item_columns": {"title": "product.name"},
        },
        titles={"9": "Lamp"},
        guess=False,
    ),
    "utf-16-text": Layout(
        {
            "Käufe.txt": (
                "\ufeff" + lines("Kunde\tArtikel\tDatum", "Müller\tÖl\t01.05.2024", "Maier\tÖl\t31.05.2024", end="\r\n")
            ).encode("utf-16-le")
        },
        [("Müller", "Öl", T - 45_000), ("Maier", "Öl", T - 45_000 + 30 * DAY)],
        {"columns": {"user_id": "Kunde", "item_id": "Artikel", "timestamp": "Datum"}},
    ),
    "excel-days": Layout(
        {"sheet.csv": lines("user;item;date", "a;x;45413,52083333", "b;x;45414,5")},
        [("a", "x", T), ("b", "x", T + DAY - 1800)],
        {"columns": {"user_id": "user", "item_id": "item", "timestamp": "date"}},
    ),
    "zipped": Layout(
        {"export.zip": zipped({"out/log.csv": lines("uid,sku,ts", f"a,x,{T}", f"b,y,{T + 1}")})},
        [("a", "x", T), ("b", "y", T + 1)],
        {"columns": {"user_id": "uid", "item_id": "sku", "timestamp": "ts"}},
    ),
    "wide": Layout(
        {
            "baskets.csv": lines(
                "customer,date,item_1,item_2,item_3", "a,2024-05-01,x,y,", "b,2024-05-02,y,,", "c,2024-05-02,x,y,z"
            )
        },
        [
            ("a", "x", T - 45_000),
            ("a", "y", T - 45_000),
            ("b", "y", T - 45_000 + DAY),
            *(("c", item, T - 45_000 + DAY) for item in "xyz"),
        ],
        {"columns": {"user_id": "customer", "item_id": "item_*", "timestamp": "date"}},
        guess=False,
    ),
    "lists": Layout(
        {"sessions.csv": lines("user_id,items,timestamp", f"a,1 2 3,{T}", f"b,2 4,{T + 1}")},
        [("a", "1", T), ("a", "2", T), ("a", "3", T), ("b", "2", T + 1), ("b", "4", T + 1)],
        {"columns": {"item_id": "items"}, "item_separator": " "},
        guess=False,
    ),
    "date-and-clock": Layout(
        {"log.csv": lines("user,item,date,clock", "a,x,01.05.2024,12:30:00", "b,x,31.05.2024,12:30:01")},
        [("a", "x", T), ("b", "x", T + 30 * DAY + 1)],
        {"columns": {"user_id": "user", "item_id": "item", "timestamp": ["date", "clock"]}},
        guess=False,
    ),
    "online-retail": Layout(
        {
            "OnlineRetail.csv": lines(
                "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
                "536365,85123A,WHITE HANGING HEART,6,12/1/2010 8:26,2.55,17850.0,United Kingdom",
                "C536379,85123A,WHITE HANGING HEART,-1,12/1/2010 9:41,2.55,17850.0,United Kingdom",
                "536370,22728,ALARM CLOCK,24,12/13/2010 8:45,3.75,,France",
                "536371,22728,ALARM CLOCK,2,12/14/2010 8:45,3.75,13047.0,France",
            ).encode("cp1252")
        },
        [("17850", "85123A", 1291191960), ("13047", "22728", 1292316300)],
        {
            "columns": {
                "user_id": "CustomerID",
                "item_id": "StockCode",
                "timestamp": "InvoiceDate",
                "quantity": "Quantity",
            },
            "item_columns": {"title": "Description", "price": "UnitPrice"},
        },
        titles={"22728": "ALARM CLOCK"},
        bad_rows=1,  # a customer without an id
    ),
    "segment-events": Layout(
        {
            "events.jsonl": json_lines(
                {
                    "type": "track",
                    "event": "Product Viewed",
                    "userId": "u1",
                    "timestamp": "2024-05-01T12:30:00.000Z",
                    "properties": {"product_id": "p1", "name": "Lamp", "price": 3.5},
                },
                {
                    "type": "track",
                    "event": "Order Completed",
                    "userId": "u2",
                    "timestamp": "2024-05-01T12:31:00.000Z",
                    "properties": {"product_id": "p1", "name": "Lamp", "price": 3.5},
                },
            )
        },
        [("u1", "p1", T), ("u2", "p1", T + 60)],
        {
            "columns": {"user_id": "userId", "item_id": "properties.product_id", "action": "event"},
            "item_columns": {"title": "properties.name", "price": "properties.price"},
            "actions": {"Product Viewed": "view", "Order Completed": "purchase"},
            "chain": ["view", "purchase"],
        },
        titles={"p1": "Lamp"},
    ),
    "quoted-tsv": Layout(
        {
            "log.tsv": lines(
                '"user_id"\t"item_id"\t"timestamp"\t"title"',
                f'"a"\t"x"\t"{T}"\t"Big ""red"" lamp"',
                f'"b"\t"x"\t"{T + 1}"\t"Big ""red"" lamp"',
            )
        },
        [("a", "x", T), ("b", "x", T + 1)],
        {"item_columns": {"title": "title"}},
        titles={"x": 'Big "red" lamp'},
    ),
    "float-ids": Layout(
        {
            "log.csv": lines("user_id,item_id,timestamp", f"1.0,10.0,{T}.0", f"2.0,11.0,{T + 1}.0"),
            "items.csv": lines("item_id,title", "10,Lamp", "11,Cup"),
        },
        [("1", "10", T), ("2", "11", T + 1)],
        {"events": "log.csv", "items": "items.csv"},
        titles={"10": "Lamp"},
    ),
    "decimal-ids": Layout(
        {
            "log.parquet": parquet(
                pl.DataFrame(
                    {"user_id": ["a", "b"], "item_id": ["1.00", "2.00"], "timestamp": [T, T + 1]}
                ).with_columns(pl.col("item_id").cast(pl.Decimal(10, 2)))
            ),
            "items.csv": lines("item_id,title", "1,Lamp", "2,Cup"),
        },
        [("a", "1", T), ("b", "2", T + 1)],
        {"events": "log.parquet", "items": "items.csv"},
        titles={"1": "Lamp"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_by_options(name: str, tmp_path: Path) -> None:
    path = write(LAYOUTS[name], tmp_path)
    check(join_parts(read_log("table", path, LAYOUTS[name].options)), LAYOUTS[name])


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.guess])
def test_layout_is_guessed(name: str, tmp_path: Path) -> None:
    rows = guessed(write(LAYOUTS[name], tmp_path)).events.select("user_id", "item_id", "timestamp").rows()
    assert sorted(rows) == sorted(LAYOUTS[name].events)
