"""The pages of `songmill explore` in a real browser, over real songs."""

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from pipeline.dataset.marks import read_marks, set_marks
from schemas.dataset import Layout
from tests.support import without_workers
from tests.support.browser import opened
from tests.support.command import start

CONTROLS = {"button", "checkbox", "combobox", "DisclosureTriangle", "link", "searchbox", "slider", "textbox", "Audio"}
SHOWN = "button, a[href], input:not([type=hidden]), select, summary, audio, [tabindex='0']"


@pytest.fixture(scope="module")
def curated(audio: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Three real songs and a copy, curated."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "songs").mkdir()
    for name in ("calm_acoustic_1", "energetic_electronic_2", "happy_electronic_1"):
        shutil.copy(audio("demo-music", f"{name}.opus"), folder / "songs")
    shutil.copy(folder / "songs" / "calm_acoustic_1.opus", folder / "songs" / "copy.opus")
    options = ["--stages", "decode,quality,fingerprint,rhythm,key,preview", "--set", "preview.seconds=12"]
    without_workers.curated(
        "curate", folder / "songs", "--out", folder / "dataset", "--license", "MIT", "--quiet", *options
    )
    return Layout.at(folder / "dataset")


@pytest.fixture(scope="module")
def address(curated: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`songmill explore` in a process of its own, which ends cleanly."""
    cache = tmp_path_factory.mktemp("cache")
    process = start("explore", curated.url, XDG_CACHE_HOME=str(cache))
    try:
        assert process.stdout
        served, shows, _ = process.stdout.readline().partition(" shows ")
        assert shows
        assert urlsplit(served).hostname == "127.0.0.1"
        listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]
        [private] = (cache / "songmill" / "explore").iterdir()
        assert private.stat().st_mode & 0o077 == 0
        yield served
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
        assert (process.returncode, out) == (0, ""), err
        assert err == f"reading 2 files into the index in {private}, which later starts reuse ...\n"
        assert len([*private.glob("*.duckdb")]) == 1
    finally:
        process.kill()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address, "127.0.0.1") as page:
        yield page


def plays_beyond(audio: Locator, seconds: float) -> None:
    """Waits in Python: the pages' policy forbids what Playwright would evaluate in them."""
    deadline = time.monotonic() + 20
    while audio.evaluate("audio => audio.currentTime") <= seconds:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def row(page: Page, title: str) -> Locator:
    return page.locator(".rows tbody tr").filter(has_text=title).first


class TestBrowser:
    def test_filter_play_mark_and_reload_by_keyboard_alone(self, page: Page, curated: Layout):
        expect(page.locator(".rows tbody tr")).to_have_count(4)
        page.keyboard.press("/")
        page.keyboard.press("Tab")  # from the search to the condition
        page.keyboard.type("quality.loudness_lufs < 0 and verdict.status = 'kept'")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?*where=quality.loudness_lufs*")
        expect(page.locator(".rows tbody tr")).to_have_count(3)

        page.keyboard.press("j")
        page.keyboard.press("j")
        second = page.locator(".rows tbody tr").nth(1)
        expect(second.locator("th a")).to_be_focused()
        page.keyboard.press("Space")
        plays_beyond(page.locator("#dock audio"), 0.5)
        expect(second.get_by_role("button", name=re.compile("^Pause "))).to_be_visible()
        page.keyboard.press("Space")
        expect(second.get_by_role("button", name=re.compile("^Play "))).to_be_visible()
        assert page.evaluate("document.querySelector('#dock audio').paused")

        page.keyboard.press("d")
        expect(page.get_by_role("status").filter(has_text="marked drop")).to_have_count(1)
        row_id = second.get_attribute("data-row")
        assert read_marks(curated)[row_id].mark == "drop"
        page.reload()
        page.wait_for_load_state()
        expect(page.locator(f'tr[data-row="{row_id}"] .chip.drop')).to_have_text(re.compile("drop"))

        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/row/**")
        expect(page.locator(".chip.drop")).to_be_visible()
        page.keyboard.press("n")
        page.keyboard.type("clicks & <b>hums</b>")
        page.keyboard.press("Escape")
        page.keyboard.press("y")
        expect(page.locator(".chip.keep")).to_be_visible()
        page.reload()
        expect(page.get_by_label("Note")).to_have_value("clicks & <b>hums</b>")
        assert read_marks(curated)[row_id].note == "clicks & <b>hums</b>"
        page.keyboard.press("Escape")
        expect(page.locator(".rows tbody tr")).to_have_count(3)  # the list as it was

    def test_a_mark_gets_its_note_in_the_list_by_keyboard_alone(self, page: Page, curated: Layout):
        set_marks(curated, dict.fromkeys(read_marks(curated)))
        page.keyboard.press("j")
        first = page.locator(".rows tbody tr").first
        row_id, name = first.get_attribute("data-row"), first.get_attribute("data-name")
        page.keyboard.press("n")
        expect(page.get_by_role("status").filter(has_text="Mark the row first")).to_have_count(1)
        page.keyboard.press("d")
        expect(first.locator(".chip.drop")).to_be_visible()

        page.keyboard.press("n")
        dialog = page.get_by_role("dialog", name=f"Note on {name}, marked drop")
        expect(dialog.get_by_role("textbox", name="Note")).to_be_focused()
        page.keyboard.type("jumps & <b>hums</b>, y d u")  # keys that do something elsewhere
        page.keyboard.press("Enter")
        expect(page.get_by_role("status").filter(has_text="marked drop, note: jumps & <b>hums</b>")).to_have_count(1)
        expect(first.locator(".mark")).to_contain_text("note: jumps & <b>hums</b>")
        expect(first.locator("th a")).to_be_focused()
        mark = read_marks(curated)[row_id]
        assert (mark.mark, mark.note) == ("drop", "jumps & <b>hums</b>, y d u")

        page.keyboard.press("n")
        page.keyboard.type("something else")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(first.locator("th a")).to_be_focused()
        page.keyboard.press("y")  # another mark keeps the note
        expect(first.locator(".chip.keep")).to_be_visible()
        mark = read_marks(curated)[row_id]
        assert (mark.mark, mark.note) == ("keep", "jumps & <b>hums</b>, y d u")

        page.reload()
        page.keyboard.press("j")
        page.keyboard.press("n")
        expect(page.get_by_label("Note", exact=True)).to_have_value("jumps & <b>hums</b>, y d u")
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        expect(first.locator(".mark")).to_have_text("")
        assert row_id not in read_marks(curated)

    def test_rows_are_marked_together_with_the_mouse(self, page: Page, curated: Layout):
        set_marks(curated, dict.fromkeys(read_marks(curated)))
        page.get_by_role("link", name=re.compile("filtered")).first.click()
        expect(page.locator(".rows tbody tr")).to_have_count(1)
        expect(page.get_by_label("Note for the selected rows")).to_be_hidden()
        page.get_by_role("checkbox", name="Select all rows of this page").check()
        expect(page.get_by_text("1 row selected")).to_be_visible()
        page.get_by_label("Note for the selected rows").fill("not a copy")
        page.get_by_role("button", name="Keep the selected rows").click()
        expect(page.locator(".chip.keep")).to_have_count(1)
        [mark] = read_marks(curated).values()
        assert (mark.mark, mark.note) == ("keep", "not a copy")

    def test_the_row_plays_with_its_waveform(self, page: Page):
        row(page, "happy_electronic_1").locator("th a").click()
        page.locator(".bars path[d]").first.wait_for(state="attached")
        page.locator("main").focus()
        page.keyboard.press("Space")
        plays_beyond(page.locator("song-row audio"), 0.5)
        expect(page.get_by_text("A preview of the song.")).to_be_visible()
        slider = page.get_by_role("slider")
        assert float(slider.get_attribute("aria-valuenow")) > float(slider.get_attribute("aria-valuemin")) > 0
        page.keyboard.press("ArrowRight")  # by range, far ahead of what was played
        plays_beyond(page.locator("song-row audio"), 5)
        assert page.locator("song-row audio").evaluate("audio => audio.error") is None

    @pytest.mark.parametrize(("where", "fewest"), [("list", 40), ("row", 8)])
    def test_every_control_has_a_name_and_tab_reaches_it(self, page: Page, where: str, fewest: int):
        if where == "row":
            row(page, "energetic").locator("th a").click()
            page.locator("song-row").wait_for()
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
        found = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(found) >= fewest
        assert [node for node in found if not node.get("name", {}).get("value", "").strip()] == []

        page.evaluate(
            "shown => { window.left = new Set([...document.querySelectorAll(shown)].filter(e => e.checkVisibility())); "
            "document.addEventListener('focusin', event => window.left.delete(event.target)); }",
            SHOWN,
        )
        stops = page.evaluate("window.left.size")
        for _ in range(stops + 20):  # an audio element has several
            page.keyboard.press("Tab")
        assert page.evaluate("[...window.left].map(e => e.outerHTML.slice(0, 200))") == []
