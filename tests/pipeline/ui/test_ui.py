"""The page in a real browser, against the sampler of a random checkpoint."""

import importlib.util
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import psutil
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect

from pipeline.commands import ui
from pipeline.sampling.config import build_config, read_settings
from tests.support import tiny_checkpoint
from tests.support.browser import opened
from tests.support.command import asked
from training.sampling.audio import read_audio

SECONDS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.build(tmp_path_factory.mktemp("ui") / "checkpoint")


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    """`songmill ui`, running in a thread, for torch and Gradio are slow to import a second time."""
    port, ended = free_port(), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ui, "_wait_for_interrupt", ended.wait)
        for variable in ("GRADIO_TEMP_DIR", "no_proxy"):  # which it sets
            patch.setenv(variable, os.environ.get(variable, ""))
        running = threading.Thread(target=ui.ui_command, args=[checkpoint], kwargs={"port": port})
        running.start()
        while not answers(port):
            assert running.is_alive()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0  # songs are their user's own
        ended.set()
        running.join(timeout=240)
        assert not folder.exists()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, which must load nothing from elsewhere and say nothing on the console."""
    with opened(browser, address, "127.0.0.1") as page:
        yield page


def test_a_clip_of_a_random_checkpoint_is_generated_and_played(page: Page) -> None:
    generate(page, takes=1)
    audio = page.locator(".deck[data-side=A] audio")
    assert audio.evaluate("audio => audio.duration") == pytest.approx(SECONDS, abs=0.01)
    expect(page.locator(".deck[data-side=B]")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text(f"{SECONDS}.0 s of audio")

    page.get_by_role("button", name="Play A").click()
    page.wait_for_function("document.querySelector('.deck audio').currentTime > 0.3")
    page.get_by_role("button", name="Pause A").click()
    assert audio.evaluate("audio => audio.error") is None
    assert page.locator(".deck[data-side=A] .wave").get_attribute("aria-valuenow") > "0.2"


def test_a_window_is_drawn_on_an_upload_and_repainted(page: Page, tmp_path: Path) -> None:
    generate(page, takes=1)
    source = download(page, "WAV", tmp_path)
    with av.open(source) as clip:
        stream = clip.streams.audio[0]
        assert (stream.channels, stream.rate, stream.duration) == (2, 48_000, SECONDS * 48_000)

    choose(page, "Repaint")
    page.locator("#source input[type=file]").set_input_files(source)
    drag(page, 0.9, 0.6)
    window_becomes(page, 0.6 * SECONDS, 0.9 * SECONDS)
    drag(page, 0.75, 0.55)  # from within: moves it
    window_becomes(page, 0.4 * SECONDS, 0.7 * SECONDS)

    page.fill("#repaint_start input", "0.5")
    start_handle = page.get_by_role("slider", name="Start of the window in seconds")
    expect(start_handle).to_have_attribute("aria-valuenow", "0.5")
    start_handle.press("ArrowRight")
    window_becomes(page, 0.6, 0.7 * SECONDS)

    page.get_by_label("Variance").first.fill("1")
    generate(page, takes=2)
    settings = parameters(page, tmp_path)
    assert settings["task"] == "repaint"
    assert (settings["repaint_start"], settings["repaint_end"]) == pytest.approx(numbers(page))
    assert settings["source"] == source.name


def test_two_takes_are_switched_at_the_same_position(page: Page) -> None:
    generate(page, takes=1)
    generate(page, takes=2)
    decks = {side: page.locator(f".deck[data-side={side}]") for side in "AB"}
    assert [deck.locator("select option:checked").inner_text()[0] for deck in decks.values()] == ["2", "1"]
    assert decks["A"].locator("audio").get_attribute("src") != decks["B"].locator("audio").get_attribute("src")

    page.get_by_role("button", name="Play A").click()
    page.wait_for_function("document.querySelector('.deck audio').currentTime > 0.3")
    page.locator("body").press("x")
    expect(decks["B"]).to_have_class(re.compile("heard"))
    page.get_by_role("button", name="Pause B").click()
    a, b = (deck.locator("audio").evaluate("audio => audio.currentTime") for deck in decks.values())
    assert 0.3 < a <= b < SECONDS

    page.get_by_label("Take heard as B").select_option(index=0)
    assert decks["B"].locator("audio").get_attribute("src") == decks["A"].locator("audio").get_attribute("src")

    decks["A"].get_by_role("button", name="Use as source").click()
    expect(page.get_by_role("radio", name="Repaint")).to_be_checked()
    expect(page.locator("#window .full")).to_have_text(f"0:0{SECONDS}.0")


def test_the_parameters_of_a_take_make_it_again(page: Page, tmp_path: Path) -> None:
    generate(page, takes=1)
    played = download(page, "WAV", tmp_path)
    recipe = download(page, "JSON", tmp_path)
    again = tmp_path / "again.wav"
    threads = torch.get_num_threads()
    asked("sample", "--config", recipe, "--out", again, "--quiet")
    torch.set_num_threads(threads)
    assert torch.equal(read_audio(again)[0], read_audio(played)[0])


def test_every_task_shows_its_own_fields(page: Page) -> None:
    own = {
        "Text to music": ["Duration (s)"],
        "Retake": ["Duration (s)", "Retake seed", "Variance"],
        "Repaint": ["Window from (s)", "Retake seed", "Variance"],
        "Extend": ["Seconds before the source", "Seconds after the source", "Retake seed", "Variance"],
        "Edit": ["Target prompt", "Target lyrics", "Retake seed", "Noises averaged"],
        "Audio to audio": ["Keep of the source"],
    }
    for task, labels in own.items():
        choose(page, task)
        for label in {label for each in own.values() for label in each}:
            expect(page.get_by_text(label, exact=True)).to_be_visible(visible=label in labels)
        expect(page.locator("#source")).to_be_visible(visible=task not in ("Text to music", "Retake"))


def test_what_cannot_be_sampled_is_told_as_text(page: Page) -> None:
    markup = "<img src=x onerror=alert(1)>"
    page.fill("#prompt textarea", "folk")
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Optimal steps").fill(markup)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text(f'whole numbers such as "16, 29, 52", not "{markup}"')

    choose(page, "Edit")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("Edit works on a source: upload one")).to_be_visible()


def test_a_generation_can_be_stopped(page: Page) -> None:
    fill(page, steps=200, seconds=200)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text("/200 steps")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Stopped")
    generate(page, takes=1)


def test_the_page_fits_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    choose(page, "Edit")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_only_this_machine_is_served_and_nothing_but_the_page(page: Page, address: str) -> None:
    listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    for secret in ("/etc/passwd", Path(__file__)):
        assert page.request.get(f"{address}gradio_api/file={secret}").status == 403
    assert page.request.get(address, headers={"Host": "elsewhere.example"}).status == 400


def test_a_port_that_is_taken_is_told(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} is taken" in asked("ui", checkpoint, "--port", port, code=2)


def test_the_page_says_how_to_install_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'songmill[ui]'" in asked("ui", tmp_path, code=2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def choose(page: Page, task: str) -> None:
    page.locator("#task label", has_text=task).click()
    expect(page.get_by_role("radio", name=task)).to_be_checked()


def fill(page: Page, steps: int = 4, seconds: int = SECONDS) -> None:
    page.fill("#prompt textarea", "folk, guitar")
    page.fill("#lyrics textarea", "[verse]\nhello there")
    page.fill("#infer_steps input[type=number]", str(steps))
    if page.locator("#duration").is_visible():
        page.fill("#duration input[type=number]", str(seconds))
    erg = page.get_by_label("ERG: prompt")  # the random text encoder has too few blocks for it
    if not erg.is_visible():
        page.get_by_role("button", name="Advanced").click()
    erg.uncheck()


def generate(page: Page, takes: int) -> None:
    """Fill the form and generate; afterwards the session has so many takes."""
    fill(page)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".deck[data-side=A] option")).to_have_count(takes)
    page.wait_for_function("document.querySelector('.deck audio').readyState >= 3")


def download(page: Page, link: str, folder: Path) -> Path:
    with page.expect_download() as begun:
        page.locator(".deck[data-side=A]").get_by_text(link, exact=True).click()
    path = folder / begun.value.suggested_filename
    begun.value.save_as(path)
    return path


def parameters(page: Page, folder: Path) -> dict[str, object]:
    """Those of take A, which `songmill sample --config` must understand."""
    recipe = download(page, "JSON", folder)
    settings, _ = read_settings(recipe)
    assert settings == json.loads(recipe.read_text())["settings"]
    build_config({**settings, "source": str(folder / settings["source"])}, {})
    return settings


def drag(page: Page, start: float, end: float) -> None:
    """Over the waveform, from one share of its width to another."""
    stage: Locator = page.locator("#window .stage")
    expect(stage).to_be_visible()
    box = stage.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], middle, steps=6)
    page.mouse.up()


def numbers(page: Page) -> tuple[float, float]:
    """The window as the fields beside it say."""
    return float(page.input_value("#repaint_start input")), float(page.input_value("#repaint_end input"))


def window_becomes(page: Page, start: float, end: float) -> None:
    """Waits until the fields say so: what the mouse does reaches them through Gradio."""
    deadline = time.monotonic() + 30
    while numbers(page) != pytest.approx((start, end), abs=0.02):
        assert time.monotonic() < deadline, numbers(page)
        page.wait_for_timeout(20)
