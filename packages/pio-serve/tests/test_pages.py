"""The pages for people: what they are served with, and what they do in a real browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from inference_pio.serve import KeyRing
from inference_pio.serve._pages import _ASSETS

PAGES = {"/": "chat.html", "/dashboard": "dashboard.html"}
FOLDER = files("inference_pio.serve").joinpath("static")


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium of this machine, or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with playwright.sync_playwright() as driver:
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next((found for name in names if (found := shutil.which(name))), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("no Chromium on this machine")
        root = os.name == "posix" and os.geteuid() == 0  # its sandbox refuses to run as root
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens pages whose console and network are watched: a test with a complaint in either fails."""
    contexts, complaints = [], []

    def begin(url, *, allowed=r"^$", **options):
        context = chromium.new_context(viewport={"width": 1000, "height": 700}, **options)
        contexts.append(context)
        page = context.new_page()

        def complain(text):
            if not re.search(allowed, text):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else complain(request.url))
        return page

    yield begin
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def unlocked(start_module_server):
    """A server without keys."""
    return start_module_server(drain_s=1).server


@pytest.mark.parametrize("path", [*PAGES, *(f"/static/{name}" for name in sorted(_ASSETS))])
def test_pages_are_files_behind_the_key_and_a_strict_policy(served, path):
    """Byte for byte those of the package; nothing inline, of others, or in a frame; 401 without a key."""
    status, headers, body = served.ask("GET", path)
    assert status == 200
    assert body == FOLDER.joinpath(PAGES.get(path, path.rpartition("/")[2])).read_bytes()
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"].endswith("; charset=utf-8")
    assert served.ask("GET", path, key=None)[0] == 401


@pytest.mark.parametrize("name", ["chat.html", "nothing.js", "..%2f_pages.py", "%2e%2e%2f_auth.py", "a%00.js"])
def test_no_other_file_is_served(served, name):
    """The names are listed, so no path leads out of the folder."""
    assert served.ask("GET", f"/static/{name}")[0] == 404


def test_every_file_of_the_folder_is_served_and_loads_nothing_from_elsewhere():
    """A file that no route serves would be dead; an address of another host would tell it who chats."""
    names = {entry.name for entry in FOLDER.iterdir()}
    assert names == _ASSETS | set(PAGES.values())
    for name in names:
        text = FOLDER.joinpath(name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|<script>|style=|\son\w+=", text)


def test_chat_streams_an_answer_and_says_how_fast(open_page, unlocked):
    """Text, tokens per second and TTFT; a second question goes with the first and its answer."""
    page = open_page(unlocked.address)
    page.route("**/v1/chat/completions", _greedily)
    page.goto(unlocked.address)
    page.get_by_text("smollm2-135m-instruct").wait_for()
    page.get_by_label("Message", exact=True).fill("Name the capital of France.")
    page.keyboard.press("Enter")
    stats = page.locator(".assistant:not(.working) .stats")
    stats.wait_for(timeout=60_000)
    assert "Paris" in page.locator(".assistant .body").inner_text()
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · TTFT \d+ ms", stats.inner_text())
    sent = []
    page.on("request", lambda made: sent.append(made.post_data_json) if made.method == "POST" else None)
    page.get_by_label("Message", exact=True).fill("And of Italy?")
    page.get_by_role("button", name="Send").click()
    page.locator(".assistant:not(.working) .stats").nth(1).wait_for(timeout=60_000)
    [body] = sent
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    _keep(page, "chat")


def test_stop_ends_the_answer_and_the_engine_computes_no_more(open_page, unlocked):
    """The text so far stays, and the request counts as cancelled."""
    page = open_page(unlocked.address)
    page.route("**/v1/chat/completions", _at_length)
    page.goto(unlocked.address)
    page.get_by_label("Message", exact=True).fill("Write a very long story about a lighthouse, in twenty chapters.")
    page.keyboard.press("Enter")
    page.locator(".assistant .body").filter(has_text=re.compile(r"[\s\S]{40}")).wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    stats = page.locator(".assistant:not(.working) .stats")
    stats.wait_for(timeout=10_000)
    assert stats.inner_text().endswith("stopped")
    assert len(page.locator(".assistant .body").inner_text()) > 30
    page.get_by_role("button", name="Send").wait_for()
    engine = unlocked.state.models.all()[0].engine
    for _ in range(100):
        if engine.snapshot().requests_running.value == 0:
            break
        page.wait_for_timeout(50)
    assert engine.snapshot().requests_running.value == 0
    assert engine.snapshot().requests_finished.values["abort"] >= 1


def test_markup_of_users_and_models_stays_text(open_page, unlocked):
    """Neither a question nor an answer becomes an element; the answer is scripted here, cut within its frames."""
    page = open_page(unlocked.address)
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    chunks = [{"choices": [{"delta": {"content": evil}}]}, {"choices": [], "usage": {"completion_tokens": 9}}]
    events = ": ping\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=events),
    )
    page.goto(unlocked.address)
    page.get_by_label("Message", exact=True).fill(evil)
    page.keyboard.press("Enter")
    page.locator(".assistant:not(.working) .stats").wait_for()
    assert page.locator(".assistant .body").inner_text() == evil
    assert page.locator(".user .body").inner_text() == evil
    assert page.locator("#messages img, #messages script").count() == 0
    assert page.title() == "Chat · Inference-PIO"


@pytest.mark.parametrize(
    ("status", "body", "seen"),
    [
        (429, '{"error": {"message": "as many requests wait as may"}}', "as many requests wait as may"),
        (502, "<html>proxy</html>", "the server answered with status 502"),
        (200, 'data: {"error": {"message": "the engine failed on this request"}}\n\n', "the engine failed"),
    ],
)
def test_errors_are_shown_and_the_question_comes_back(open_page, unlocked, status, body, seen):
    """Refused, broken by a proxy, failed within the stream: the reason is shown, and asking again is one key away."""
    page = open_page(unlocked.address, allowed="Failed to load resource")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body))
    page.goto(unlocked.address)
    page.get_by_label("Message", exact=True).fill("Hello?")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text=seen).wait_for()
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == "Hello?"


def test_page_asks_for_the_key_and_keeps_it_in_the_tab(open_page, start_server):
    """The password that opened the page does not open the API; a wrong key is asked for again; the right one lasts over
    a reload, and is nowhere but in sessionStorage."""
    key = "the-key-of-this-test"
    server = start_server(keys=KeyRing([key]))
    page = open_page(server.url, allowed="401", http_credentials={"username": "me", "password": key})
    page.goto(server.url)
    for given in ("wrong-key-of-this-test", key):
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Continue").click()
        if given != key:
            page.get_by_text("does not know this key").wait_for()
            _keep(page, "key")
    page.get_by_text("smollm2-135m-instruct").wait_for()
    page.reload()
    page.get_by_text("smollm2-135m-instruct").wait_for()
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[key], 0, ""]


@pytest.mark.parametrize("path", [*PAGES, "/static/chat.js", "/metrics", "/v1/models", "/staticx", "/version"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_password_opens_the_pages_alone(served, path, method):
    """Any name, the key as password, for reading pages; nothing else, for browsers send it unasked."""
    page = (path in PAGES or path.startswith("/static/")) and method != "POST"

    def status(credentials):
        encoded = base64.b64encode(credentials.encode()).decode()
        headers = {"authorization": f"Basic {encoded}", "content-type": "application/json"}
        return served.ask(method, path, key=None, headers=headers)[:2]

    assert status(f"me:{served.key}")[0] == status(f":{served.key}")[0] == (200 if page else 401)
    for wrong in ("me:wrong-key-of-mine", "me:", served.key, f"{served.key}:", "", "me"):
        code, headers = status(wrong)
        assert code == 401
        assert headers["www-authenticate"].partition(" ")[0] == ("Basic" if page else "Bearer")
    assert served.ask(method, path, key=None, headers={"authorization": "Basic !!"})[0] == 401


def test_dashboard_draws_what_the_metrics_say(open_page, unlocked):
    """While a request runs: one running, a rate of tokens, a latency, a share of the cache; lines, not just labels."""
    board = open_page(unlocked.address)
    board.goto(f"{unlocked.address}/dashboard")
    chat = open_page(unlocked.address)
    chat.route("**/v1/chat/completions", _at_length)
    chat.goto(unlocked.address)
    chat.get_by_label("Message", exact=True).fill("Write a very long story about a lighthouse, in twenty chapters.")
    chat.keyboard.press("Enter")
    board.get_by_text(re.compile(r"^running 1$")).wait_for(timeout=30_000)
    board.get_by_text(re.compile(r"^generated \d+(\.\d)?/s$")).wait_for(timeout=30_000)
    board.get_by_text(re.compile(r"^first token [\d.]+ m?s$")).wait_for(timeout=30_000)
    board.get_by_text(re.compile(r"^used [\d.]+ %$")).wait_for(timeout=30_000)
    board.wait_for_timeout(3000)
    _keep(board, "dashboard")
    if chat.get_by_role("button", name="Stop").is_visible():
        chat.get_by_role("button", name="Stop").click()
    assert board.locator("#state").inner_text() == "live"
    assert board.locator("#model").inner_text() == "smollm2-135m-instruct"
    lines = board.locator("path.series").evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
    assert len(lines) == 7
    assert all("L" in lines[index] for index in (0, 2, 6))
    assert not any("NaN" in line for line in lines)


def test_dashboard_says_that_the_server_is_gone(open_page, unlocked):
    """And goes on once it is back."""
    page = open_page(unlocked.address, allowed="Failed to load resource")
    page.goto(f"{unlocked.address}/dashboard")
    page.get_by_text("live").wait_for()
    page.route("**/metrics", lambda route: route.abort())
    page.get_by_text("not connected").wait_for(timeout=10_000)
    page.unroute("**/metrics")
    page.get_by_text("live").wait_for(timeout=10_000)


def _greedily(route):
    """What a page asks for, with the one answer that does not depend on chance."""
    route.continue_(post_data={**route.request.post_data_json, "temperature": 0})


def _at_length(route):
    """The same, with an answer that lasts until it is stopped."""
    route.continue_(post_data={**route.request.post_data_json, "temperature": 0, "ignore_eos": True})


def _keep(page, name):
    """A screenshot, where somebody wants to look at it."""
    folder = os.environ.get("PIO_SCREENSHOTS")
    if folder is not None:
        page.screenshot(path=f"{folder}/{name}.png")
