"""Calls from many threads at once equal the same calls one after another."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager

from genrec.inference.recommender import RecommendationRequest

# Functions that keep, or once kept, texts of a call on a shared object and read them back a line later.
WINDOW = {
    ("ranker.py", "collator"),
    ("ranker.py", "_encoded"),
    ("ranker.py", "_proposed"),
    ("query_features.py", "build"),
    ("query_items.py", "sparse_scores"),
}
# Functions that build the next catalogue beside the one that calls read.
GROWTH = {
    ("changing_catalogue.py", "add_items"),
    ("snapshot.py", "add"),
    ("snapshot.py", "_extended"),
    ("growth.py", "grow"),
    ("growth.py", "_grow_items"),
    ("growth.py", "_shared"),
    ("candidates.py", "grown"),
    ("features.py", "grown"),
    ("lexical.py", "grow"),
    ("bm25.py", "grow"),
    ("popularity.py", "grown"),
}


@contextmanager
def opened_windows(functions: set[tuple[str, str]]):
    """Sleep at every line of these functions in threads started meanwhile: others get between a write and its use."""
    opened: set[tuple[str, str]] = set()

    def slow(_frame, event, _argument):
        if event == "line":
            time.sleep(0.002)
        return slow

    def trace(frame, _event, _argument):
        name = (frame.f_code.co_filename.rsplit("/", 1)[-1], frame.f_code.co_name)
        if name not in functions:
            return None
        opened.add(name)
        return slow

    interval = sys.getswitchinterval()
    threading.settrace(trace)
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        threading.settrace(None)
        sys.setswitchinterval(interval)
    assert opened == functions, "a function of the window is gone: name the one in its place"


def test_concurrent_calls_equal_the_same_calls_in_sequence(model):
    ids, texts = model.snapshot.item_ids, model.dataset.query_texts
    history = ids[2:6]

    def calls(n: int) -> list:
        query = texts[n]
        return [
            lambda: model.search(query, history=history[: n % 4 + 1], k=5),
            lambda: model.recommend(history=[{"item_id": ids[n], "query": query}], k=5),
            lambda: model.suggest(history=[{"item_id": ids[n + 1], "query": query}], k=5),
            lambda: model.explain(ids[n + 2], history=history, query=query).score,
            lambda: model.ask([RecommendationRequest(query=query, k=3, exclude_seen=False, mode="retrieve")])[0].items,
        ]

    model.suggest(k=1)
    expected = {(n, m): call() for n in range(4) for m, call in enumerate(calls(n))}
    results, errors = {}, []

    def work(n: int) -> None:
        try:
            for m, call in enumerate(calls(n)):
                results[n, m] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    with opened_windows(WINDOW):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors, errors[0]
    for key, value in expected.items():
        assert results[key] == value, key


def test_calls_while_items_are_added(model):
    """Whoever calls while items come sees one catalogue: with the item from then on, without it before."""
    history, query = model.snapshot.item_ids[2:5], model.dataset.query_texts[0]
    before = model.search(query, history=history, k=80)
    (started, added, ended), errors = (threading.Event() for _ in range(3)), []

    def ask() -> None:
        try:
            while True:
                during, late = started.is_set(), added.is_set()
                items = [answer.item_id for answer in model.search(query, history=history, k=81)]
                assert len(items) in ((81,) if late else (80, 81))
                assert late or len(items) == 81 or items == [answer.item_id for answer in before]
                model.suggest(history=["added", *history], k=3)
                if during:
                    ended.set()
                if late:
                    model.explain("added", history=history, query=query)
                    return
        except BaseException as error:
            errors.append(error)

    def wait_for(event: threading.Event) -> None:
        if not event.wait(120):
            errors.append(AssertionError("no call ended while the item was being added"))

    def add() -> None:
        started.set()
        # Nobody sees the item before a call has ended that began while it was being added.
        model.add_items([{"item_id": "added", "title": "Blue wool scarf"}], lambda _: wait_for(ended))
        added.set()

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for thread in askers:
        thread.start()
    with opened_windows(GROWTH):  # the askers run at full speed: they started before
        adding = threading.Thread(target=add)
        adding.start()
        for thread in [adding, *askers]:
            thread.join()
    assert not errors, errors[0]
