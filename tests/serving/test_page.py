"""The demo page: what its files promise, and in headless Chromium that each state is shown and can be used.

The browser tests run where ``GENREC_CHROMIUM`` names a Chromium executable.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
import time
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import uvicorn

from genrec.serving.app import create_app
from genrec.serving.engine import Engine
from genrec.serving.settings import ServeSettings

BROWSER = os.environ.get("GENREC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FOLDER = files("genrec.serving").joinpath("page")
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; name one in GENREC_CHROMIUM")


class Page(HTMLParser):
    """The elements of a page: tag, attributes and the text inside, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict, list[str]]] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "link", "input", "img", "br"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data):
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, tag: str) -> list[tuple[dict, str]]:
        """Attributes and stripped text of every element of this kind."""
        return [(given, "".join(text).strip()) for name, given, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {entry.name: entry.read_text(encoding="utf-8") for entry in FOLDER.iterdir() if entry.is_file()}


@pytest.fixture(scope="module")
def page(sources) -> Page:
    return Page(sources["index.html"])


@pytest.fixture(scope="module")
def scripts(sources) -> str:
    return "\n".join(text for name, text in sources.items() if name.endswith(".js"))


def test_nothing_comes_from_elsewhere(sources):
    for name, text in sources.items():
        if name.endswith(".html"):
            given = [given for _, given, _ in Page(text).elements]
            links = [value for one in given for key, value in one.items() if key in ("src", "href")]
            assert all(re.fullmatch(r"data:,|[\w/.]+", link) for link in links), links
            assert {link.removeprefix("page/") for link in links if link.startswith("page/")} <= set(sources)
            assert not any(key.startswith("on") or key == "style" for one in given for key in one), "inline code"
        imports = re.findall(r'^import .* from "\./([\w.]+)";', text, re.MULTILINE)
        assert set(imports) <= set(sources) and len(imports) == len(re.findall(r"^import ", text, re.MULTILINE))
        assert not re.search(r"https?://|@import|url\(|\bimport\(", text.replace("https:|", ""))


def test_words_of_the_catalogue_stay_text(scripts):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", scripts)


def test_language_title_and_width_are_set(sources):
    for name in ("index.html", "docs.html"):
        one = Page(sources[name])
        assert one.all("html")[0][0]["lang"] == "en" and one.all("title")[0][1]
        assert any(given.get("name") == "viewport" for given, _ in one.all("meta"))


def test_every_button_and_input_has_a_name(page):
    assert all(inside or given.get("aria-label") for given, inside in page.all("button"))
    assert {given["for"] for given, _ in page.all("label")} == {given["id"] for given, _ in page.all("input")}


def test_what_the_page_refers_to_exists(page, scripts):
    ids = [given["id"] for _, given, _ in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    names = ("aria-labelledby", "aria-controls", "for")
    references = {given[name] for _, given, _ in page.elements for name in names if name in given}
    assert references | set(re.findall(r'\$\("([\w-]+)"\)', scripts)) - {"routes"} <= set(ids)


def test_the_page_and_its_files_are_served_without_a_key(serving, sources, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("read " + "k" * 16)

    async def go():
        async with serving(key_file=keys) as (client, _):
            index = await client.get("/")
            assert (
                index.text == sources["index.html"] and "script-src 'self'" in index.headers["content-security-policy"]
            )
            for name, text in sources.items():
                reply = await client.get(f"/page/{name}")
                assert reply.status_code == 200 and reply.text == text
            assert (await client.get("/page/../app.py")).status_code in (401, 404)
            assert (await client.get("/page/app.py")).status_code == 404
            assert (await client.post("/v1/recommend", json={})).status_code == 401

    asyncio.run(go())


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, bundle, tmp_path):
    """``visit(width=1280, **settings)``: the page of a server on the bundle, its first list shown unless keys are."""
    running, pages = [], []

    def start(width: int = 1280, wait: bool = True, **settings):
        app = create_app(
            Engine(ServeSettings(bundle, events=str(tmp_path / "e.sqlite"), time_budget_ms=20_000.0, **settings))
        )
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        page = chromium.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.goto(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/")
        if wait:
            settle(page)
        return page

    yield start
    for page in pages:
        page.close()
    for server, thread in running:
        server.should_exit = True
        thread.join()


def settle(page) -> None:
    page.wait_for_selector("#results[aria-busy=false] .item")


def until_heading(page, words: str) -> None:
    """Wait for a heading; a condition as JavaScript text would break the content policy."""
    page.wait_for_selector(f"#heading-text:has-text('{words}')")


def titles(page) -> list[str]:
    return page.locator("#results .title").all_text_contents()


def history(page) -> list[str]:
    return page.locator("#history li span").all_text_contents()


def check(page) -> None:
    """No serious finding of axe-core, nothing wider than the window, no small target."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    actual = [one for one in axe.run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert not actual, [(one["id"], one["nodes"][0]["html"]) for one in actual]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = page.evaluate(
        "[...document.querySelectorAll('button, input, summary, footer a')].filter(one => one.offsetParent)"
        ".map(one => [one.outerHTML, one.getBoundingClientRect().width, one.getBoundingClientRect().height])"
    )
    assert not [box for box in boxes if min(box[1:]) < 24]


@in_browser
def test_a_first_visit_shows_a_person_with_a_history_and_reasons(visit):
    for width in (390, 1280):
        page = visit(width)
        assert len(titles(page)) == 10 and history(page)
        assert page.locator("#people button[aria-pressed=true]").count() == 1
        assert page.locator(".because").count() and page.locator(".tree .leaf").count()
        check(page)


@in_browser
def test_like_changes_the_list_and_undo_brings_it_back(visit):
    page = visit()
    before, had = titles(page), history(page)
    page.locator("#results .item .acts button").first.click()
    page.wait_for_selector("#undo.open")
    settle(page)
    assert len(history(page)) == len(had) + 1 and titles(page) != before and page.locator(".badge").count()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Like ")
    check(page)
    page.click("#undo button")
    page.wait_for_selector("#undo:not(.open)", state="attached")
    settle(page)
    assert titles(page) == before and history(page) == had


@in_browser
def test_hidden_items_stay_away_and_reasons_open(visit):
    page = visit()
    first = page.locator("#results .item").first
    item = first.get_attribute("data-item")
    page.locator("#results .acts button").nth(2).click()
    page.wait_for_selector("#results .why li")
    assert first.locator("[aria-expanded=true]").count() == 1
    page.locator("#results .acts button").nth(1).click()
    page.wait_for_selector("#undo.open")
    settle(page)
    assert page.locator(f"#results [data-item='{item}']").count() == 0


@in_browser
def test_search_by_keyboard_with_suggestions_and_comparison(visit):
    page = visit()
    page.focus("#query")
    page.keyboard.type("scarf")
    page.keyboard.press("Enter")
    until_heading(page, "scarf")
    settle(page)
    page.click("#compare")
    page.wait_for_selector("#baselines:not([hidden]) h3")
    assert page.locator("#baselines h3").all_text_contents() == ["Most popular", "Word match (BM25)"]
    check(page)
    page.fill("#query", "qqqzzz xxyyzz")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice:not([hidden])")
    assert "Nothing matches" in page.locator("#notice").text_content()
    page.click("#notice button")
    until_heading(page, "want next")


@in_browser
def test_suggestions_are_a_combobox(visit):
    page = visit(wait=False)
    body = json.dumps(
        {"suggestions": [{"query": one, "score": 1.0, "count": 1} for one in ("blue scarf", "red scarf")]}
    )
    page.route("**/v1/suggest", lambda route: route.fulfill(status=200, content_type="application/json", body=body))

    def about(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"suggestions": True})

    page.route("**/v1/bundle", about)
    page.reload()
    settle(page)
    page.focus("#query")
    page.keyboard.type("b")
    page.wait_for_selector("#suggestions:not([hidden])")
    check(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#suggestions [aria-selected=true]").text_content() == "red scarf"
    assert page.get_attribute("#query", "aria-activedescendant") == "suggestion-1"
    page.keyboard.press("Enter")
    until_heading(page, "red scarf")
    assert page.get_attribute("#query", "aria-expanded") == "false"


@in_browser
def test_somebody_new_gets_what_is_popular(visit):
    page = visit()
    page.locator("#people button").last.click()
    until_heading(page, "What is popular")
    assert not history(page) and "Nothing yet" in page.locator("#history-note").text_content()
    page.fill("#taste", "blue wool scarf")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li:nth-child(3)")
    assert len(history(page)) == 3


@in_browser
def test_a_server_that_went_away_is_said_and_can_be_tried_again(visit):
    page = visit(390)
    before, had = titles(page), history(page)
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#people button").nth(1).click()
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer" in page.locator("#problem").text_content() and titles(page) == before
    assert history(page) != had  # it is that of the person who was picked
    check(page)
    page.unroute("**/v1/**")
    page.click("#problem button")
    page.wait_for_selector("#problem", state="hidden")
    settle(page)


@in_browser
def test_a_key_is_asked_for(visit, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("read " + "k" * 16)
    page = visit(390, wait=False, key_file=keys)
    page.wait_for_selector("#keyed:not([hidden])")
    check(page)
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:not([hidden])")
    page.fill("#key", "k" * 16)
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator("#keyed").is_hidden()
