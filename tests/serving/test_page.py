"""The demo page in headless Chromium: it asks, draws the beam, and a click changes the next list. Skipped where there is no browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
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
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=8000"]  # fmt: skip
CLICKER = "<script>setTimeout(() => { document.title = $('results').innerText; $('results').querySelector('.title').click(); }, 4000);</script>"


def test_the_page_brings_nothing_from_elsewhere():
    text = files("genrec.serving").joinpath("demo.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text) and "innerHTML" not in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_click_in_the_browser_changes_the_list(bundle, tmp_path):
    app = create_app(Engine(ServeSettings(bundle, events=str(tmp_path / "events.sqlite"), time_budget_ms=20_000.0)))
    html = files("genrec.serving").joinpath("demo.html").read_text()
    app.add_api_route("/clicked", lambda: HTMLResponse(html.replace("</body>", CLICKER + "</body>")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom"]
    url = f"http://127.0.0.1:{port}/clicked?taste=blue%20wool%20scarf"
    page = subprocess.run([*command, url], check=False, capture_output=True, text=True, timeout=900).stdout
    server.should_exit = True
    thread.join()
    assert page.count('class="title"') == 10 and page.count("<circle") > 10 and 'class="lit"' in page
    history = page[page.index('id="history"') : page.index('id="keyed"')]
    assert history.count("<li>") == 4, "three items of the described taste and the clicked one"
    before, after = (
        re.search(r"<title>(.*?)</title>", page, re.DOTALL)[1],
        page[page.index('id="results"') : page.index('id="tree"')],
    )
    titles = re.findall(r'class="title">(.*?)</button>', after)
    assert titles != [line for line in before.splitlines() if line in titles] and 'class="item new"' in after
    assert re.search(r'id="problem" role="alert"></span>', page), "the page shows an error"
