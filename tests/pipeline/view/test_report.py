"""`songmill inspect --html`: a dataset of real audio, curated by the real command, seen and heard in a real browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

from pipeline.dataset.stats import collect_stats, connect
from pipeline.errors import UsageProblem
from pipeline.pages.excerpts import make_excerpt, stored_excerpts
from pipeline.pages.funnel import funnel
from pipeline.pages.histograms import histograms
from pipeline.pages.row import row_view
from pipeline.pages.sampling import _shares, sample
from pipeline.pages.sound import Sound
from pipeline.pages.templates import asset, environment
from pipeline.pages.thresholds import dataset_gates
from pipeline.planning.plan import Plan
from pipeline.view.report import write_report
from schemas.dataset import Layout
from tests.support import toy_dataset, without_workers
from tests.support.audio import silence, tone, write
from tests.support.browser import opened
from tests.support.command import asked, queried
from tests.support.tracks import load

Audio = Callable[[str, str], Path]
HOSTILE = """</script><script>document.title = 'broken'</script>"><img src=x onerror="document.title='broken'">'"""
RIGHT_TO_LEFT = "\u202eأغنية <b>الصباح</b>"
PREVIEW_S = 6


@pytest.fixture(scope="module")
def songs(audio: Audio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs, the first with timed lyrics and a title that is markup, a copy of it, and what is turned away."""
    folder = tmp_path_factory.mktemp("songs")
    song = load(audio("demo-music", "happy_electronic_1.opus"), seconds=20)
    write(folder / "song.flac", song, metadata={"title": HOSTILE, "artist": RIGHT_TO_LEFT, "album": "a & b"})
    (folder / "song.lrc").write_text(
        "\n".join(f"[00:{second:02d}.00]line {second} {HOSTILE}" for second in range(0, 20, 2)), encoding="utf-8"
    )
    write(folder / "copy.mp3", song, kbps=96, metadata={"title": "a copy"})
    other = load(audio("demo-music", "calm_acoustic_1.opus"), seconds=12)
    write(folder / "other.flac", other, metadata={"title": "the other one"})
    whole = write(folder / "whole.mp3", other[:, ::-1].copy(), metadata={"title": "cut off"})
    (folder / "truncated.mp3").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    write(folder / "silent.wav", silence(8))
    write(folder / "one second.wav", tone(440, 1))
    (folder / "text.wav").write_text("no audio at all\n")
    return folder


@pytest.fixture(scope="module")
def curated(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curated, then given previews."""
    out = tmp_path_factory.mktemp("dataset") / "seen"
    quick = ("--quiet",)
    stages = "decode,quality,fingerprint,rhythm,sections"
    without_workers.curated("curate", songs, "--out", out, "--stages", stages, "--license", "CC-BY-4.0", *quick)
    without_workers.curated("curate", "--add", "preview", out, f"--set=preview.seconds={PREVIEW_S}", *quick)
    return out


@pytest.fixture(scope="module")
def report(curated: Path) -> Path:
    out = curated.parent / "report.html"
    assert "3 filtered, 2 kept; 6 with sound" in asked("inspect", curated, "--html", out)
    return out


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report, opened from disk."""
    with opened(browser, report.as_uri()) as page:
        yield page


def card(page: Page, dataset: Path, name: str) -> Any:
    [row] = queried(dataset, f"select row_id from tracks where uri like '%/{name}'")
    return page.locator(f"#row-{row['row_id']}")


def stored(dataset: Path) -> dict[str, dict[str, Any]]:
    """Row id -> preview."""
    files = sorted(dataset.glob("features/preview/*.parquet"))
    return {row["row_id"]: row["preview"] for file in files for row in pq.read_table(file).to_pylist()}


class TestPreviewsOfADataset:
    def test_every_kept_row_has_one_beside_its_shard(self, curated: Path):
        assert "as committed" in asked("verify", curated)
        kept = {row["row_id"] for row in queried(curated, "select row_id from tracks")}
        previews = stored(curated)
        assert previews.keys() == kept
        for made in previews.values():
            with av.open(io.BytesIO(made["data"])) as container:
                assert sum(frame.samples for frame in container.decode(audio=0)) == PREVIEW_S * 48_000
        assert "features/preview/*.parquet" in (curated / "README.md").read_text()

    def test_a_user_s_own_kind_of_preview_is_not_played(self, curated: Path, tmp_path: Path):
        layout = Layout.at(shutil.copytree(curated, tmp_path / "dataset"))
        ids = list(stored(curated))
        assert stored_excerpts(layout, ids).keys() == {*ids}
        for file in (tmp_path / "dataset/features/preview").glob("*.parquet"):
            rows = [{"row_id": row["row_id"], "preview": {"heard": "yes"}} for row in pq.read_table(file).to_pylist()]
            pq.write_table(pa.Table.from_pylist(rows), file)
        assert stored_excerpts(layout, ids) == {}


class TestInTheBrowser:
    def test_it_plays_and_playhead_and_lyrics_follow(self, page: Page, curated: Path):
        row = card(page, curated, "song.flac")
        start_s = next(p["start_s"] for i, p in stored(curated).items() if row.get_attribute("id") == f"row-{i}")
        audio, wave = row.locator("audio"), row.get_by_role("slider")
        row.scroll_into_view_if_needed()
        expect(row.locator(".bars .all")).to_have_attribute("d", re.compile(r"^M0\.15,"))
        buttons = row.locator(".lyrics button")
        assert 2 <= buttons.count() < 10  # the other lines are not in the excerpt
        buttons.nth(1).click()
        line = row.locator(".lyrics li[aria-current=true]")
        expect(line).to_have_count(1)
        began = float(line.get_attribute("data-start"))
        page.wait_for_function(
            "began => document.querySelector('li[aria-current=true]').dataset.start > began", arg=began
        )
        audio.evaluate("audio => audio.pause()")
        position = start_s + audio.evaluate("audio => audio.currentTime")
        assert audio.evaluate("audio => audio.error") is None
        assert audio.evaluate("audio => audio.duration") == pytest.approx(PREVIEW_S, abs=0.01)
        assert position >= began + 2
        assert float(line.get_attribute("data-start")) <= position < float(line.get_attribute("data-end"))
        assert float(wave.get_attribute("aria-valuenow")) == pytest.approx(position, abs=0.3)
        shares = wave.evaluate("w => [parseFloat(w.querySelector('.playhead').style.left), w.clientWidth]")
        assert shares[0] == pytest.approx((position - start_s) / PREVIEW_S * 100, abs=5)

    def test_a_click_on_the_waveform_and_keys_seek(self, page: Page, curated: Path):
        row = card(page, curated, "other.flac")
        audio, wave = row.locator("audio"), row.get_by_role("slider")
        wave.scroll_into_view_if_needed()
        box = wave.bounding_box()
        wave.click(position={"x": box["width"] / 2, "y": 20})
        current = "audio => audio.currentTime"
        assert audio.evaluate(current) == pytest.approx(PREVIEW_S / 2, abs=0.05)
        wave.press("ArrowRight")
        assert audio.evaluate(current) == pytest.approx(PREVIEW_S / 2 + 2, abs=0.05)
        wave.press("Home")
        assert audio.evaluate(current) == 0
        wave.press("Space")
        page.wait_for_function("() => [...document.querySelectorAll('audio')].some(audio => audio.currentTime > 0.2)")
        wave.press("Space")
        assert audio.evaluate("audio => audio.paused")

    def test_one_row_plays_at_a_time(self, page: Page):
        audios = page.locator("audio")
        assert audios.count() == 6
        for i in (0, 1):
            audios.nth(i).evaluate("audio => audio.play()")
        page.wait_for_function("() => document.querySelectorAll('audio')[0].paused")
        assert not audios.nth(1).evaluate("audio => audio.paused")

    def test_what_was_damaged_is_heard_as_far_as_it_goes_and_what_is_no_audio_says_so(self, page: Page):
        failed = page.locator("article.failed")
        cut = failed.filter(has_text="TruncatedAudio")
        assert 4 < cut.locator("audio").evaluate(_LOADED) < 7.5
        text = failed.filter(has_text="NotAudio")
        expect(text.locator("audio")).to_have_count(0)
        expect(text.locator(".remark")).to_contain_text("No sound: ")

    def test_markup_in_titles_and_lyrics_is_text(self, page: Page, curated: Path):
        row = card(page, curated, "song.flac")
        assert page.title() == curated.name
        assert row.get_by_role("heading").first.inner_text() == HOSTILE
        assert row.locator(".by").inner_text() == f"{RIGHT_TO_LEFT} · a & b"
        assert row.locator(".lyrics .words").first.inner_text().endswith(HOSTILE)
        assert page.locator("img, b:has-text('الصباح')").count() == 0

    def test_nothing_but_its_own_script_could_run(self, browser: Browser, report: Path):
        page = browser.new_page()  # the browser says on its console what it refuses
        page.goto(report.as_uri())
        page.evaluate(_INJECT)
        page.wait_for_function("() => window.refused === 'script-src-elem'")
        assert page.title() != "broken"
        page.close()

    def test_every_control_has_a_name(self, page: Page):
        controls = page.locator("a, button, audio, summary, [role=slider], [role=img], [tabindex]")
        assert controls.count() > 30
        names = controls.evaluate_all("all => all.map(one => one.getAttribute('aria-label') || one.textContent)")
        assert all(name.strip() for name in names)

    def test_it_is_dark_where_that_is_wished_and_fits_a_narrow_screen(self, page: Page):
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(paper) != light
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

    def test_words_are_followed_too(self, browser: Browser, curated: Path, tmp_path: Path):
        lines = [{"start_s": 1.0, "end_s": 3.0, "text": "one two", "verdict": "canonical", "words": []}]
        spans = ((1.0, 2.0, "one"), (2.0, 3.0, "two"))
        lines[0]["words"] = [{"start_s": start, "end_s": end, "text": text} for start, end, text in spans]
        made = make_excerpt(queried(curated, "select uri, track_id from tracks limit 1")[0], 4, 32)
        sound = Sound(made.sound().src, 0.0, 4.0, [1.0])
        template = environment().from_string('{% from "row.html" import row_card %}{{ row_card(row, sound) }}')
        shown = template.render(row=row_view({"row_id": "a", "lyrics": {"lines": lines}}, ()), sound=sound)
        file = tmp_path / "card.html"
        file.write_text(f"<!doctype html>{shown}<script type=module>{asset('player.js')}</script>", encoding="utf-8")
        with opened(browser, file.as_uri()) as page:
            page.get_by_role("button").first.click()
            for word in ("one", "two"):
                expect(page.locator(".words .now")).to_have_text(word)


_INJECT = """() => {
    document.addEventListener("securitypolicyviolation", (event) => { window.refused = event.effectiveDirective; });
    const script = document.createElement("script");
    script.textContent = "document.title = 'broken'";
    document.body.append(script);
}"""
_LOADED = """audio => new Promise((resolve) => {
    audio.preload = "metadata";
    audio.onloadedmetadata = () => resolve(audio.duration);
    audio.load();
})"""


class TestWhatIsOnIt:
    def test_stored_previews_are_played_as_they_are(self, report: Path, curated: Path):
        text = report.read_text("utf-8")
        for made in stored(curated).values():
            assert f"data:audio/ogg;base64,{base64.b64encode(made['data']).decode()}" in text

    def test_the_same_seed_makes_the_same_page(self, report: Path, curated: Path, tmp_path: Path):
        asked("inspect", curated, "--html", tmp_path / "again.html", "--seed", 0)
        assert (tmp_path / "again.html").read_bytes() == report.read_bytes()

    def test_a_small_sample_has_something_of_every_verdict(self, curated: Path, tmp_path: Path):
        told = json.loads(asked("inspect", curated, "--html", tmp_path / "few.html", "--rows", 3, "--json"))
        assert told["rows"] == {"kept": 1, "filtered": 1, "failed": 1}

    def test_sounds_are_cut_until_the_page_fits(self, curated: Path, tmp_path: Path):
        whole = write_report(Layout.at(curated), tmp_path / "whole.html")
        limit = whole.bytes - 60_000
        made = write_report(Layout.at(curated), tmp_path / "small.html", limit_bytes=limit)
        assert made.bytes == (tmp_path / "small.html").stat().st_size <= limit
        assert made.remark.startswith("Sounds are cut to ")
        assert made.remark in (tmp_path / "small.html").read_text("utf-8")
        sounds = re.findall(r'src="data:audio/ogg;base64,([^"]+)"', (tmp_path / "small.html").read_text("utf-8"))
        assert len(sounds) == made.heard == 6
        for sound in sounds:
            with av.open(io.BytesIO(base64.b64decode(sound))) as container:
                assert sum(frame.samples for frame in container.decode(audio=0)) > 0.5 * 48_000

    def test_rows_that_were_asked_for_come_first(self, curated: Path, tmp_path: Path):
        [row] = queried(curated, "select row_id from quarantine where uri like '%silent.wav'")
        out = tmp_path / "asked.html"
        write_report(Layout.at(curated), out, rows=2, extra_rows=[row["row_id"]], extra_title="Nearest to a threshold")
        found = re.findall(r'<article [^>]*data-row="([^"]+)"', out.read_text("utf-8"))
        assert found[0] == row["row_id"]
        assert len(found) == 3
        assert "Nearest to a threshold" in out.read_text("utf-8")
        with pytest.raises(UsageProblem, match="no row nobody"):
            write_report(Layout.at(curated), out, extra_rows=["nobody"])

    def test_a_file_that_has_changed_is_not_played(self, songs: Path, curated: Path):
        [row] = queried(curated, "select uri, track_id from quarantine where uri like '%copy.mp3'")
        assert make_excerpt(row, 5, 32).duration_s == 5
        assert "its bytes have changed" in make_excerpt({**row, "track_id": "another"}, 5, 32).remark
        assert make_excerpt({**row, "uri": "gone.flac"}, 5, 32).remark.startswith("No sound: gone.flac: No such file")
        assert "No sound: " in make_excerpt({**row, "uri": "nothing://of/the/kind"}, 5, 32).remark

    def test_the_funnel_runs_through_the_dag_and_loses_nobody(self, curated: Path):
        layout = Layout.at(curated)
        stats, plan = collect_stats(layout), Plan.model_validate_json((curated / "_songmill/plan.json").read_bytes())
        steps = funnel(plan, stats.verdicts, stats.rows["total"])
        assert [(step.name, step.entering) for step in steps] == [
            ("decode", 7),
            ("quality", 4),
            ("fingerprint", 3),
            ("dedup", 3),
            ("rhythm", 2),
            ("sections", 2),
        ]
        assert steps[0].turned_away == {
            "failed: NotAudio": 1,
            "failed: TruncatedAudio": 1,
            "filtered: min_duration_s": 1,
        }
        assert steps[-1].leaving == stats.rows["kept"]

    def test_plots_count_every_row_that_has_the_figure(self, curated: Path):
        connection = connect(Layout.at(curated))
        plots = {(p.column, p.field): p for p in histograms(connection, dataset_gates(Layout.at(curated)))}
        assert (plots["audio", "duration_s"].rows, sum(b.kept for b in plots["audio", "duration_s"].bins)) == (5, 2)
        assert plots["audio", "duration_s"].thresholds == [("min", 5.0), ("max", 1200.0)]
        assert plots["rhythm", "bpm"].rows == 2
        assert plots["quality", "loudness_lufs"].unit == "LUFS"


class TestRefusals:
    def test_no_dataset_and_no_folder(self, curated: Path, tmp_path: Path):
        assert "is no songmill dataset" in asked("inspect", tmp_path, "--html", tmp_path / "x.html", code=1)
        assert "No such file or directory" in asked("inspect", curated, "--html", tmp_path / "no" / "x.html", code=1)
        assert "give only one of --sql, --html" in asked(
            "inspect", curated, "--html", "x.html", "--sql", "select 1", code=2
        )


class TestSample:
    @pytest.fixture(scope="class")
    def connection(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return connect(Layout.at(toy_dataset.write_dataset(tmp_path_factory.mktemp("toy"), songs=40)))

    def test_a_seed_draws_the_same_rows_and_another_one_others(self, connection: Any):
        drawn = [sample(connection, 10, seed) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert [len({*ids}) for ids in drawn] == [10, 10, 10]
        assert {*sample(connection, 100, 3)} == {f"row-0000{i:012x}" for i in range(40)}

    @given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 120))
    def test_shares_are_as_equal_as_the_groups_allow(self, sizes: list[int], total: int):
        shares = _shares(sizes, total)
        assert sum(shares) == min(total, sum(sizes))
        assert all(share <= size for share, size in zip(shares, sizes, strict=True))
        largest = max(shares, default=0)
        assert all(share in (size, largest, largest - 1) for share, size in zip(shares, sizes, strict=True))
