"""KuaiRand: the feedback chain, hated rows, the logs an option takes, the digest of the history, and every row
accounted for."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from genrec.data.readers import read_log
from genrec.data.readers.kuairand import CHAIN
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
START = 1650812741000


def row(user: object, video: object, ms: object, on: str = "", rand: int = 0, tab: int = 1) -> str:
    """A log row whose flags named in ``on`` are 1."""
    flag = {
        name: int(name in on.split())
        for name in ("click", "like", "follow", "comment", "forward", "hate", "long_view", "profile")
    }
    return (
        f"{user},{video},20220424,2305,{ms},{flag['click']},{flag['like']},{flag['follow']},{flag['comment']},{flag['forward']},"
        f"{flag['hate']},{flag['long_view']},61802,49866,0,0,{flag['profile']},{rand},{tab}"
    )


GOOD = [
    row(1, 10, START + 436),
    row(1, 11, START + 437, "click"),
    row(2, 10, START + 100, "click long_view like"),
    row(2, 12, START + 1999, "like", tab=0),
    row(3, 10, START + 5, "click hate"),
    row(3, 11, START + 6, "click long_view comment follow"),
    row(3, 12, START + 7, "click forward profile"),
]
ACTIONS = ["impression", "click", "like", "like", "click", "follow", "forward"]
VIDEOS = [
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag",
    '10,7,NORMAL,2022-04-10,LongImport,0,87433,720,1280,9,9,"39,68"',
    "11,8,AD,2022-04-10,Kmovie,0,,720,1280,9,,2",
    "12,8,NORMAL,2022-04-10,Kmovie,0,218066,720,1280,9,9,",
]
USERS = [
    "user_id,user_active_degree,follow_user_num,follow_user_num_range",
    '1,full_active,514,"(250,500]"',
    "2,UNKNOWN,5,0",
    "3,x,,0",
]
HISTORY = [
    "user_id\thistory_len\tlast_time_ms\tlast50_watched_video_ids\tliked_video_ids\tlong_viewed_video_ids",
    "1\t4\t1650615878629\t10 12 10 11\t\t10",
    "2\t1\t1650615878630\t12\t12\t",
]


def write(folder: Path, name: str, lines: list[str]) -> None:
    data = ("\n".join(lines) + "\n").encode()
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".")[-1], bytes)
    (folder / name).write_bytes(pack(data))


def layout(folder: Path, log: list[str] = GOOD, suffix: str = "") -> Path:
    write(folder, f"log_standard_4_22_to_5_08_pure.csv{suffix}", [HEADER, *log])
    write(folder, f"video_features_basic_pure.csv{suffix}", VIDEOS)
    write(folder, f"user_features_pure.csv{suffix}", USERS)
    return folder


def read(path: Path, **options: object) -> RawLog:
    return join_parts(read_log("kuairand", path, options))


def accounted(log: RawLog) -> bool:
    history = log.impressions.filter(log.impressions["surface"] == "history") if log.impressions is not None else None
    visible = 0 if history is None else log.impressions.height - history.height + history["user_id"].n_unique()
    users = 0 if log.users is None else log.users.height
    return log.rows_read == visible + log.items.height + users + log.quarantine.height + sum(log.filtered.values())


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_shown_video_with_its_deepest_stage(tmp_path, suffix):
    log = read(layout(tmp_path, suffix=suffix))
    assert log.chain == CHAIN and log.quarantine.is_empty() and accounted(log)
    assert log.impressions["action"].to_list() == ACTIONS
    assert log.impressions["timestamp"].to_list()[:4] == [1650812741, 1650812741, 1650812741, 1650812742]
    assert log.impressions.filter(log.impressions["hate"])["item_id"].to_list() == ["10"]
    assert log.impressions["profile_enter"].sum() == 1 and log.impressions["is_rand"].sum() == 0
    assert log.impressions["play_time_ms"].to_list() == [61802] * 7
    # The hated click is no event, the shown but unclicked video neither.
    assert log.events.select("user_id", "item_id", "action", "surface", "time_ms").rows() == [
        ("1", "11", "click", "tab 1", START + 437),
        ("2", "10", "like", "tab 1", START + 100),
        ("2", "12", "like", "tab 0", START + 1999),
        ("3", "11", "follow", "tab 1", START + 6),
        ("3", "12", "forward", "tab 1", START + 7),
    ]
    assert log.items.select("item_id", "category", "video_duration", "author_id").rows() == [
        ("10", ["NORMAL", "39", "68"], 87433, "7"),
        ("11", ["AD", "2"], None, "8"),
        ("12", ["NORMAL"], 218066, "8"),
    ]
    assert log.users.select("user_id", "follow_user_num", "follow_user_num_range").rows()[0] == ("1", 514, "(250,500]")


def test_min_action_moves_events_but_no_impressions(tmp_path):
    layout(tmp_path)
    for stage, kept in (("impression", 6), ("long_view", 4), ("like", 4), ("follow", 2)):
        log = read(tmp_path, min_action=stage)
        assert log.events.height == kept and log.impressions.height == 7 and accounted(log)


def test_random_logs_follow_the_option(tmp_path):
    write(layout(tmp_path), "log_random_4_22_to_5_08_pure.csv", [HEADER, row(9, 12, START, "click", rand=1)])
    write(tmp_path, "video_features_statistic_pure.csv", ["video_id,show_cnt", "10,5", "11,6"])
    standard, random, both = (read(tmp_path, logs=logs) for logs in ("standard", "random", "all"))
    statistics = "video_features_statistic sums up the days of the log"
    assert standard.filtered == {statistics: 2, "log left out by option logs=standard": 1}
    assert random.filtered == {statistics: 2, "log left out by option logs=random": 7}
    assert both.filtered == {statistics: 2}
    assert [log.impressions.height for log in (standard, random, both)] == [7, 1, 8]
    assert random.impressions["is_rand"].to_list() == [True] and all(map(accounted, (standard, random, both)))
    single = tmp_path / "log_random_4_22_to_5_08_pure.csv"
    assert read(single, logs="random").impressions.height == 1
    with pytest.raises(UserError, match="set option logs"):
        read(single)
    parts = read(tmp_path / "log_*.csv", logs="all")
    assert parts.impressions.height == 8 and parts.items.is_empty()


def test_history_is_left_out_or_comes_before_the_log_in_order(tmp_path):
    write(
        layout(tmp_path),
        "train_sequences_upto_20220424.tsv.gz",
        [*HISTORY, "2\t1\t1650615878630\t10\t\t", "4\t1\tsoon\t10\t\t", "5\t0\t1650615878630\t\t\t"],
    )
    without = read(tmp_path)
    assert without.filtered == {"train_sequences left out by option history=false": 5} and accounted(without)
    log = read(tmp_path, history=True)
    assert log.impressions.head(5).select("user_id", "item_id", "timestamp", "action", "click").rows() == [
        ("1", "10", 1650615878, "impression", None),
        ("1", "12", 1650615878, "impression", None),
        ("1", "10", 1650615878, "long_view", None),  # one long view listed: the last showing
        ("1", "11", 1650615878, "impression", None),
        ("2", "12", 1650615878, "like", None),
    ]
    assert log.events.height == without.events.height + 2
    assert log.quarantine["line"].to_list() == [4, 5, 6] and accounted(log)


def test_bad_rows_are_set_aside_one_by_one(tmp_path):
    bad = [
        row("", 10, START), row(1, "", START), row(1, 10, "soon"), row(1, 10, 12), row(1, 10, 10**17),
        row(1, 10, "nan"),
        row(1, 10, START).replace(",0,0,0,0", ",2,0,0,0", 1), row(1, 10, START).rsplit(",", 1)[0],
        row(1, 10, START) + ",5",
    ]  # fmt: skip
    layout(tmp_path, [*bad, "", *GOOD])
    with (tmp_path / "log_standard_4_22_to_5_08_pure.csv").open("ab") as file:
        file.write(b"1,\xff10,20220424\n")
    write(tmp_path, "user_features_pure.csv", [*USERS, USERS[1], ",x,1,0"])
    log = read(tmp_path)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    words = ["no user_id", "no video_id", *["time_ms"] * 4, "is_click", "18 fields", "20 fields"]
    for line, word in enumerate(words, start=2):
        assert word in actual["log_standard_4_22_to_5_08_pure.csv", line]
    assert "utf-8" in actual["log_standard_4_22_to_5_08_pure.csv", 19]
    assert "repeated" in actual["user_features_pure.csv", 5] and "no user_id" in actual["user_features_pure.csv", 6]
    assert log.quarantine.height == 12 and log.impressions.height == 7 and accounted(log)


def test_small_batches_give_the_same_log(tmp_path, monkeypatch):
    write(layout(tmp_path, [*GOOD, row(1, "", 5), *GOOD]), "train_sequences_upto_20220424.tsv", HISTORY)
    write(tmp_path, "user_features_pure.csv", [*USERS, USERS[1]])
    whole = read(tmp_path, history=True)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 150)
    pieces = list(read_log("kuairand", tmp_path, {"history": True}))
    small = join_parts(pieces)
    assert len(pieces) > 10 and max(piece.impressions.height for piece in pieces if piece.impressions is not None) < 6
    for name in ("events", "items", "users", "impressions", "quarantine"):
        assert getattr(whole, name).equals(getattr(small, name)), name
    assert whole.rows_read == small.rows_read and accounted(small)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"log_standard\*.csv"):
        read(tmp_path)
    layout(tmp_path)
    with pytest.raises(UserError, match="did you mean 'history'"):
        read(tmp_path, histroy=True)
    with pytest.raises(UserError, match="did you mean 'long_view'"):
        read(tmp_path, min_action="long_views")
    with pytest.raises(UserError, match="true or false"):
        read(tmp_path, history="yes")
    write(tmp_path, "log_standard_4_22_to_5_08_pure.csv.gz", [HEADER])
    with pytest.raises(UserError, match="twice"):
        read(tmp_path)
    (tmp_path / "log_standard_4_22_to_5_08_pure.csv.gz").unlink()
    for header, words in (
        (HEADER.replace("time_ms", "time_msec", 1), "nearest: 'time_msec'"),
        (HEADER + ",item_id", "'item_id'"),
        (HEADER + ",tab", "twice"),
    ):
        write(tmp_path, "log_standard_4_22_to_5_08_pure.csv", [header, *GOOD])
        with pytest.raises(UserError, match=words):
            read(tmp_path)
