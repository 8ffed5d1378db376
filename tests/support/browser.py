"""Debian's Chromium, driven by playwright, and a page that may load nothing from elsewhere."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = (
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
)
_PATIENCE_MS = 30_000  # the other tests are at work meanwhile


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser; skips without one, and fails where tests must not be skipped."""
    if CHROMIUM is None:
        message = "NO BROWSER: the page is not tested; install one with: sudo apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *OFFLINE])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, *hosts: str, **options: object) -> Iterator[Page]:
    """A page that says nothing on the console and asks no host but these; data: and file: addresses have none."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)  # type: ignore[arg-type]
    context.set_default_timeout(_PATIENCE_MS)
    expect.set_options(timeout=_PATIENCE_MS)
    page = context.new_page()
    said: list[ConsoleMessage | Error] = []
    asked: set[str] = set()
    page.on("console", lambda message: message.type == "error" and said.append(message))
    page.on("pageerror", lambda error: said.append(error))
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname or ""))
    page.goto(address)
    yield page
    page.close()
    context.close()
    assert [str(message) for message in said] == []
    assert asked - {""} <= {*hosts}
