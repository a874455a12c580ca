"""The demo page: what its text promises, and in headless Chromium that a click changes the next list."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import uvicorn
from fastapi.responses import HTMLResponse

from genrec.serving.app import create_app
from genrec.serving.engine import Engine
from genrec.serving.settings import ServeSettings

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
    "--window-size=500,900",
    "--dump-dom",
]
CLICKER = """<script>setTimeout(() => {
  document.title = [...document.querySelectorAll('#results .title')].map(title => title.innerText).join('|');
  $('results').querySelector('button').click();
  setTimeout(() => light([...state.nodes.keys()][0]), 2000);
}, 4000);</script>"""


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
def text() -> str:
    return files("genrec.serving").joinpath("demo.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_nothing_comes_from_elsewhere(text, page):
    links = [value for _, given, _ in page.elements for name, value in given.items() if name in ("src", "href")]
    assert links and all(link.startswith("data:") or re.fullmatch(r"[\w/]+", link) for link in links), links
    assert not any("src" in given for given, _ in page.all("script"))
    assert set(re.findall(r"https?://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text


def test_words_of_the_catalogue_stay_text(text):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_language_title_and_width_are_set(page):
    assert page.all("html")[0][0]["lang"] == "en" and page.all("title")[0][1]
    assert any(given.get("name") == "viewport" for given, _ in page.all("meta"))


def test_every_button_and_input_has_a_name(text, page):
    assert all(inside or given.get("aria-label") for given, inside in page.all("button") if given.get("id") or inside)
    labelled = {given["for"] for given, _ in page.all("label")}
    assert labelled == {given["id"] for given, _ in page.all("input")}
    made = re.findall(r'make\("button".*', text)
    assert len(made) == 1, "buttons are made in one function, which names them"
    assert 'setAttribute("aria-label", label)' in text[text.index(made[0]) :][:200]


def test_what_the_page_refers_to_exists(text, page):
    ids = [given["id"] for _, given, _ in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    references = {
        given[name] for _, given, _ in page.elements for name in ("aria-labelledby", "for", "list") if name in given
    }
    assert references | set(re.findall(r'\$\("([\w-]+)"\)', text)) <= set(ids)


def test_errors_and_new_lists_are_announced(page):
    roles = {given.get("id"): given for _, given, _ in page.elements}
    assert roles["problem"]["role"] == "alert" and roles["undo"]["role"] == "status"
    assert roles["results"]["aria-live"] == "polite" and roles["tree"]["aria-label"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_click_in_the_browser_changes_the_list(text, bundle, tmp_path):
    app = create_app(Engine(ServeSettings(bundle, events=str(tmp_path / "events.sqlite"), time_budget_ms=20_000.0)))
    app.add_api_route("/clicked", lambda: HTMLResponse(text.replace("</body>", CLICKER + "</body>")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/clicked?taste=blue%20wool%20scarf"
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", url]
    try:
        after = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout
    finally:
        server.should_exit = True
        thread.join()
    drawn = {given["id"]: inside for _, given, inside in Page(after).elements if "id" in given}
    assert not drawn["problem"], drawn["problem"]
    assert after.count('class="title"') == 10 and after.count("<circle") > 10 and 'class="lit"' in after
    assert after[after.index('id="history"') : after.index('id="empty"')].count("<li>") == 4, (
        "three items of the described taste and the liked one"
    )
    titles = re.findall(r'class="title">(.*?)</div>', after)
    assert titles != Page(after).all("title")[0][1].split("|") and 'class="item new"' in after
