"""The web page in a real Chromium: choose a file, ask, read the answer. $LITEFRAME_SCREENSHOTS keeps the picture."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from liteframe.integrations.server.app import Server
from liteframe.integrations.server.settings import ServeSettings
from tiny_server import QUESTION, make_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# It may run as root in CI, and must not look for anything outside.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture
def page():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=browser, args=OPTIONS)
        opened = chromium.new_page(viewport={"width": 1100, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        chromium.close()


def test_a_file_is_chosen_asked_about_and_the_answer_read(page, listen, clip, tmp_path):
    from playwright.sync_api import expect  # its own way of waiting: the page forbids eval

    model = make_model()
    expected = model.ask(clip, QUESTION, num_frames=32, max_new_tokens=12).text
    server = Server(model, "tiny", ServeSettings(max_new_tokens=12))
    faults, asked_elsewhere = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    address = listen(server)
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((address, "blob:", "data:")) else asked_elsewhere.append(sent.url),
    )
    page.goto(address)
    assert page.locator("#ask").is_disabled()  # there is nothing to ask about yet

    page.set_input_files("#file", clip)
    expect(page.locator("#sheet img")).to_have_count(20, timeout=60_000)  # the clip has 20 frames
    expect(page.locator("#ask")).to_be_enabled(timeout=60_000)
    page.fill("#question", QUESTION)
    page.click("#ask")
    page.locator("#answers .cost").first.wait_for(state="visible")

    answer = page.locator("#answers article").first
    assert answer.locator("h3").inner_text() == QUESTION
    assert answer.locator(".text").text_content() == expected
    assert "20 frames, " in answer.locator(".small").inner_text()
    assert page.locator("#said").text_content() == f"Answer: {expected}"  # what a screen reader is told
    folder = Path(os.environ.get("LITEFRAME_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / "page.png", full_page=True)
    assert (folder / "page.png").stat().st_size > 10_000

    page.fill("#question", "And then?")
    page.keyboard.press("Enter")
    expect(page.locator("#answers .cost:visible")).to_have_count(2, timeout=60_000)
    assert "the video was encoded before" in page.locator("#answers .small").first.inner_text().lower()
    assert (faults, asked_elsewhere) == ([], [])
    assert page.locator("#fault").is_hidden()
    page.goto("about:blank")  # leaving removes the upload
    deadline = time.monotonic() + 20
    while [each.name for each in server.uploads.folder.iterdir()] != [".lock"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
