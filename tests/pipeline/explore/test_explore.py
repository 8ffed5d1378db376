"""`songmill explore`: what it answers, and what it refuses."""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks, set_marks
from pipeline.explore.app import Explorer
from pipeline.explore.conditions import Conditions
from pipeline.explore.facets import facets_of
from pipeline.explore.index_cache import IndexCache
from pipeline.explore.live import Live
from pipeline.explore.query import Catalog
from pipeline.explore.ranges import Unsatisfiable, part_of
from pipeline.explore.selection import PAGE_ROWS, Selection
from pipeline.planning.plan import Plan, StagePlan
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.dataset import Layout
from schemas.files import file_digest
from tests.support.command import asked

HOST = "127.0.0.1:7870"
HOSTILE = """</script><script>document.title = 'broken'</script>"><img src=x onerror="document.title='broken'"> مرحبا"""
SCHEMA = pa.schema(
    [
        *columns.IDENTITY,
        ("audio", columns.AUDIO),
        ("quality", columns.QUALITY),
        ("vocals", columns.VOCALS),
        ("transcript", columns.TRANSCRIPT),
        ("rhythm", columns.RHYTHM),
        ("key", columns.KEY),
        ("tags", columns.TAGS),
        ("flags", columns.FLAGS),
        ("verdict", columns.VERDICT),
    ]
)
PREVIEW = pa.schema([("row_id", pa.string()), ("preview", columns.PREVIEW)])
SONGS = 120


def song(number: int, folder: Path) -> dict[str, Any]:
    """Every tenth is turned away, every thirtieth could not be read."""
    failed, filtered = number % 30 == 29, number % 10 == 9
    status = "failed" if failed else "filtered" if filtered else "kept"
    stage, reason = (None, None) if status == "kept" else ("decode", "NotAudio") if failed else ("quality", "min_bpm")
    return {
        "row_id": f"{number:032x}",
        "track_id": f"{number:032x}",
        "uri": str(folder / f"song-{number}.wav"),
        "title": "Élan vital" if number == 7 else f"Song {number}",
        "artist": f"Artist {number % 4}",
        "source": ("fma", "own")[number % 2],
        "license": (None, "MIT", "CC0-1.0")[number % 3],
        "language": "en" if number % 5 else None,
        "audio": None if failed else {"duration_s": 60.0 + number, "codec": "wav", "model": "pyav@r1"},
        "quality": None if failed else {"bandwidth_hz": 20_000.0 - number},
        "vocals": None if failed else {"has_vocals": number % 2 == 0},
        "transcript": {"text": f"la la {number}", "language": "ja"} if number % 6 == 0 else None,
        "rhythm": None if failed else {"bpm": 60.0 + number, "beats_s": [0.5 * i for i in range(number)]},
        "key": None if failed else {"tonic": "AB"[number % 2], "mode": "minor"},
        "tags": None if failed else {"names": ["rock", "pop", "jazz"][: number % 4], "scores": [0.9, 0.8, 0.7]},
        "flags": ["tempo"] if number % 11 == 0 else [],
        "verdict": {"status": status, "stage": stage, "reason": reason, "message": None, "attempts": 1},
    }


def commit(layout: Layout, unit: int, songs: list[dict[str, Any]], supersedes: int | None = None) -> None:
    """A unit with its record, as `curate` writes it."""
    parts = {
        layout.shard_file(unit): [row for row in songs if row["verdict"]["status"] == "kept"],
        layout.quarantine_file(unit): [row for row in songs if row["verdict"]["status"] != "kept"],
    }
    states = {r["row_id"]: RowState(status=r["verdict"]["status"], track_id=r["track_id"], basis="") for r in songs}
    with layout.store.writing():
        temporary = {}
        for name, rows in parts.items():
            temporary[name] = layout.store.scratch / f"{name.partition('/')[0]}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary[name], row_group_size=16)
        files = {name: file_digest(path) for name, path in temporary.items()}
        record = Commit(unit=unit, plan="toy", files=files, rows=states, timings={}, supersedes=supersedes)
        Ledger(layout).open().add(record, temporary)


def write(root: Path, songs: list[dict[str, Any]], place: str | None = None) -> Layout:
    """A dataset of two units whose second song can be heard."""
    layout = Layout.at(place or root / "dataset")
    stage = {"engine": "x", "params": {}, "reads": [], "working": [], "models": {}, "resources": {}, "fingerprint": "0"}
    gates = {"quality": {"min_bandwidth_hz": 19_950.0}}
    plans = {name: StagePlan(name=name, **stage) for name in ("audio", "quality", "rhythm")}
    plan = Plan(profile="small", columns=plans, gates=gates, dedup=None)
    with layout.store.writing():
        layout.store.publish({layout.plan: plan.model_dump_json().encode()})
    commit(layout, 0, songs[:70])
    commit(layout, 1, songs[70:])
    (root / "songs").mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(songs[1]["uri"], generator.uniform(-0.5, 0.5, (16_000, 2)), 8_000, "PCM_16")
    return layout


def served(live: Live, conditions: Conditions) -> TestClient:
    app = Explorer(live, [HOST], conditions).asgi
    return TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)


@pytest.fixture(scope="module")
def conditions() -> Iterator[Conditions]:
    with Conditions() as conditions:
        yield conditions


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A dataset that no test changes; rows 3 and 50 are marked drop, row 8 keep."""
    root = tmp_path_factory.mktemp("explore")
    layout = write(root, [song(number, root / "songs") for number in range(SONGS)])
    set_marks(layout, {f"{3:032x}": "drop", f"{50:032x}": "drop"}, "a; b")
    set_marks(layout, {f"{8:032x}": "keep"})
    return Live(IndexCache(layout, root / "index"))


@pytest.fixture(scope="module")
def reader(shared: Live, conditions: Conditions) -> TestClient:
    return served(shared, conditions)


@pytest.fixture
def songs(tmp_path: Path) -> list[dict[str, Any]]:
    return [song(number, tmp_path / "songs") for number in range(SONGS)]


@pytest.fixture
def layout(tmp_path: Path, songs: list[dict[str, Any]]) -> Layout:
    return write(tmp_path, songs)


@pytest.fixture
def live(layout: Layout, tmp_path: Path) -> Live:
    return Live(IndexCache(layout, tmp_path / "index"))


@pytest.fixture
def client(live: Live, conditions: Conditions) -> TestClient:
    return served(live, conditions)


def get(client: TestClient, path: str = "/", code: int = 200, **query: Any) -> str:
    answer = client.get(path, params=query)
    assert answer.status_code == code, answer.text
    return answer.text


def listed(page: str) -> list[int]:
    """Numbers of the songs on a page, in order."""
    return [int(row_id, 16) for row_id in re.findall(r'<tr data-row="(\w+)"', page)]


def total(page: str) -> int:
    return int(re.search(r"<p><b>([\d,]+)</b>", page)[1].replace(",", ""))


def token(page: str) -> str:
    return re.search(r'data-token="([\w-]+)"', page)[1]


class TestList:
    def test_pages_have_every_row_once(self, reader: TestClient):
        pages = [listed(get(reader, page=number)) for number in (1, 2, 3)]
        assert [len(page) for page in pages] == [PAGE_ROWS, PAGE_ROWS, SONGS - 2 * PAGE_ROWS]
        assert sorted(chain(*pages)) == list(range(SONGS))
        assert "There is no page 4" in get(reader, page=4)

    def test_a_page_is_asked_for_by_its_number_within_what_is_chosen(self, reader: TestClient):
        page = get(reader, q="song", status="kept", sort="rhythm.bpm")
        form = re.search(r'<form action="/" method="get">.*?</form>', page, re.DOTALL)[0]
        fields = dict(re.findall(r'name="([^"]+)"(?: type="number")?(?: min="1" max="\d+")? value="([^"]*)"', form))
        assert fields == {"q": "song", "status": "kept", "sort": "rhythm.bpm", "page": "1"}

    @pytest.mark.parametrize("descending", [False, True])
    def test_rows_are_sorted_by_any_figure_and_unknown_ones_come_last(self, reader: TestClient, descending: bool):
        order = {"order": "desc"} if descending else {}
        found = [*chain(*(listed(get(reader, sort="rhythm.bpm", page=page, **order)) for page in (1, 2, 3)))]
        known = [number for number in range(SONGS) if number % 30 != 29]
        assert found[: len(known)] == (known[::-1] if descending else known)
        assert sorted(found[len(known) :]) == [29, 59, 89, 119]

    def test_a_figure_without_a_column_gets_one(self, reader: TestClient):
        page = get(reader, sort="quality.bandwidth_hz")
        assert re.search(r'aria-sort="ascending"[^>]*><a[^>]*>quality.bandwidth_hz', page)
        assert '<td class="number">19,882</td>' in page

    @pytest.mark.parametrize(
        ("query", "fits"),
        [
            ({"status": "kept"}, lambda n: n % 10 != 9),
            ({"status": ["failed", "filtered"]}, lambda n: n % 10 == 9),
            ({"reason": "decode: NotAudio"}, lambda n: n % 30 == 29),
            ({"reason": ""}, lambda n: n % 10 != 9),
            ({"language": "ja"}, lambda n: n % 6 == 0),  # as heard, whatever was declared
            ({"language": ""}, lambda n: n % 5 == 0 and n % 6 != 0),
            ({"license": ["", "MIT"]}, lambda n: n % 3 != 2),
            ({"key": "A minor", "source": "fma"}, lambda n: n % 2 == 0),
            ({"tag": "jazz"}, lambda n: n % 4 == 3 and n % 30 != 29),
            ({"tag": ["", "jazz"]}, lambda n: n % 4 in (0, 3) or n % 30 == 29),
            ({"vocals": "instrumental"}, lambda n: n % 2 == 1 and n % 30 != 29),
            ({"flag": "tempo"}, lambda n: n % 11 == 0),
            ({"mark": "drop"}, lambda n: n in (3, 50)),
            ({"mark": ["", "keep"]}, lambda n: n not in (3, 50)),
            ({"q": "elan VITAL"}, lambda n: n == 7),
            ({"q": "vital ARTIST elan"}, lambda n: n == 7),
            ({"q": f"{9:032x}"}, lambda n: n == 9),
            ({"q": "%"}, lambda n: False),
            (
                {"where": "rhythm.bpm > 120 and list_contains(tags.names, 'rock')"},
                lambda n: n > 60 and n % 4 and n % 30 != 29,
            ),
            ({"where": "len(rhythm.beats_s) < 10 -- not in the index"}, lambda n: n < 10),
            ({"where": "transcript.text like '%1' or mark = 'keep'"}, lambda n: n == 8),
            ({"where": "note = 'a; b'"}, lambda n: n in (3, 50)),
            ({"where": "audio is null", "q": "song"}, lambda n: n % 30 == 29),
        ],
    )
    def test_filters_choose(self, reader: TestClient, query: dict, fits: Callable[[int], bool]):
        expected = [number for number in range(SONGS) if fits(number)]
        first = get(reader, **query)
        assert total(first) == len(expected)
        found = listed(first) + listed(get(reader, page=2, **query)) + listed(get(reader, page=3, **query))
        assert sorted(found) == expected

    def test_facets_count_as_if_nothing_of_their_own_were_chosen(self, shared: Live):
        catalog = Catalog(shared.index)
        counts = catalog.counts(Selection(chosen={"status": ("kept",), "source": ("own",)}), shared.marks)
        assert counts.rows == sum(n % 10 != 9 and n % 2 == 1 for n in range(SONGS))
        assert counts.facets["status"] == {"kept": 48, "filtered": 8, "failed": 4}
        assert counts.facets["source"] == {"fma": 60, "own": 48}
        rows = [song(n, Path())["tags"]["names"] for n in range(1, SONGS, 2) if n % 10 != 9]
        assert counts.facets["tag"] == {name: sum(name in row for row in rows) for name in ("rock", "pop", "jazz")}
        assert counts.facets["mark"] == {"": 47, "drop": 1}
        hours = sum(60 + n for n in range(SONGS) if n % 10 != 9 and n % 2 == 1) / 3600
        assert counts.hours == pytest.approx(hours)

    @given(st.sets(st.sampled_from(["kept", "filtered", "failed"])), st.sets(st.sampled_from(["rock", "pop", ""])))
    def test_an_address_is_the_whole_state(self, status: set[str], tags: set[str]):
        fields = {"verdict.status": "text", "tags.names": "list", "rhythm.bpm": "number"}
        chosen = {"status": tuple(status), "tag": tuple(tags)}
        selection = Selection(
            "rock & röll", "bpm > 3", {k: v for k, v in chosen.items() if v}, "rhythm.bpm", descending=True, page=3
        )
        assert Selection.of(QueryParams(selection.query[1:]), facets_of(fields), fields) == selection

    @pytest.mark.parametrize(
        ("query", "told"),
        [
            ({"sort": "rhythm.beats_s"}, "cannot be sorted by"),
            ({"sort": "1; drop table rows"}, "cannot be sorted by"),
            ({"page": "0"}, "is not a page"),
            ({"page": "²"}, "is not a page"),
        ],
    )
    def test_an_address_that_means_nothing_is_told(self, reader: TestClient, query: dict, told: str):
        assert told in get(reader, code=400, **query)


class TestCondition:
    @pytest.mark.parametrize(
        ("where", "told"),
        [
            ("(select count(*) from read_csv('/etc/passwd')) > 0", "Permission Error"),
            ("(select content from read_text('/etc/passwd')) > 'a'", "Permission Error"),
            ("(select count(*) from glob('/etc/*')) > 0", "Permission Error"),
            ("(select count(*) from '/etc/passwd') > 0", "does not exist"),
            ("exists (from parquet_metadata('/etc/passwd'))", "Permission Error"),
            ("true; drop table rows", "more than one statement"),
            ("true; attach 'x.db'", "more than one statement"),
            ("attach 'x.db'", "does not exist"),  # read as a value of a type of that name
            ("copy rows to 'x.csv'", "Parser Error"),
            ("pragma database_list", "Parser Error"),
            ("set memory_limit='1TB'", "Parser Error"),
            ("true) union all (select 1", "Parser Error"),
            ("1) or (1", "Parser Error"),
            ("true limit 1", "modifier"),
            ("true from rows", "FROM clause"),
            ("rhythm.bmp > 3", "bmp"),
            ("title >", "Parser Error"),
            ("title = $1", "parameters"),
            ("cast(title as int) > 3", "Conversion Error"),
            ("count(*) > 1", "aggregates"),
        ],
    )
    def test_what_is_no_answerable_expression_is_told_on_the_page(self, reader: TestClient, where: str, told: str):
        page = get(reader, where=where, code=400)
        problem = re.search(r'role="alert">(.*?)</p>', page, re.DOTALL)[1]
        assert told in problem
        assert "root:" not in page
        assert "LINE 1" not in problem  # nor the query around it
        assert total(get(reader)) == SONGS  # and nothing has come of it

    def test_the_connection_writes_nothing(self, shared: Live, tmp_path: Path):
        for statement in (
            "drop table rows",
            "insert into rows select * from rows",
            "create table x as select 1",
            f"attach '{tmp_path}/x.db'",
            f"copy rows to '{tmp_path}/x.csv'",
            "set enable_external_access = true",
            "install httpfs",
            "load httpfs",
            f"export database '{tmp_path}/x'",
            "select * from songs",  # a variable of this program
        ):
            with pytest.raises(duckdb.Error):
                shared.index.cursor().execute(statement)


class TestSound:
    @pytest.fixture
    def address(self) -> str:
        return f"/audio/{1:032x}"

    def test_a_song_is_served_whole(self, client: TestClient, songs: list[dict], address: str):
        content = Path(songs[1]["uri"]).read_bytes()
        answer = client.get(address)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"] == "audio/wav"
        assert answer.headers["accept-ranges"] == "bytes"
        head = client.head(address)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))

    def test_parts_are_the_files_slices(self, client: TestClient, songs: list[dict], address: str):
        content = Path(songs[1]["uri"]).read_bytes()
        size = len(content)

        @given(st.integers(0, size + 10), st.integers(0, size + 10) | st.none())
        def check(first: int, last: int | None) -> None:
            asked_for = f"bytes={first}-{'' if last is None else last}"
            answer = client.get(address, headers={"Range": asked_for})
            if last is not None and last < first:
                assert (answer.status_code, answer.content) == (200, content)
            elif first >= size:
                assert answer.status_code == 416
                assert answer.headers["content-range"] == f"bytes */{size}"
            else:
                end = size if last is None else min(last + 1, size)
                assert (answer.status_code, answer.content) == (206, content[first:end])
                assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
                assert answer.headers["content-length"] == str(end - first)

        check()
        assert client.get(address, headers={"Range": "bytes=-100"}).content == content[-100:]
        assert client.get(address, headers={"Range": "bytes=0-0,5-9"}).content == content
        stale = client.get(address, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
        assert (stale.status_code, stale.content) == (200, content)

    @given(st.text(alphabet="bytes=0123456789-, x", max_size=20), st.integers(0, 50))
    def test_whatever_is_asked_for_lies_within(self, header: str, size: int):
        try:
            part = part_of(header, size)
        except Unsatisfiable:
            return
        assert part is None or 0 <= part[0] < part[1] <= size

    def test_a_preview_goes_first(self, client: TestClient, layout: Layout, live: Live, audio: Callable):
        opus = audio("demo-music", "happy_electronic_1.opus").read_bytes()
        root = Path(layout.url)
        rows = pq.read_table(root / "shards/train-000000.parquet")["row_id"].to_pylist()
        made = [{"row_id": row_id, "preview": None} for row_id in rows]
        made[1]["preview"] = {"codec": "opus", "data": opus, "start_s": 12.5, "duration_s": 31.5}
        (root / "features/preview").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(made, PREVIEW), root / "features/preview/train-000000.parquet")
        answer = client.get(f"/audio/{rows[1]}", headers={"Range": "bytes=10-19"})
        assert (answer.status_code, answer.content) == (206, opus[10:20])
        assert answer.headers["content-type"] == "audio/ogg"
        sound = json.loads(re.search(r'class="sound">(.*?)</script>', get(client, f"/row/{rows[1]}"))[1])
        assert sound["start_s"] == 12.5
        assert sound["length_s"] == 31.5
        bars = client.get(sound["peaks_src"]).json()
        assert len(bars) == 400
        assert max(bars) == 1
        assert client.get(f"/audio/{rows[2]}").status_code == 404  # its song is not there

    def test_only_audio_that_a_row_names_is_served(
        self, layout: Layout, songs: list[dict], conditions: Conditions, tmp_path: Path
    ):
        secret = tmp_path / "secret.txt"
        secret.write_text("secret")
        tempting = {2: str(secret), 3: f"file://{secret}", 4: "https://example.org/a.wav", 5: str(tmp_path), 6: "a.wav"}
        for number, uri in tempting.items():
            songs[number]["uri"] = uri
        commit(layout, 2, songs[:70], supersedes=0)
        client = served(Live(IndexCache(layout, tmp_path / "index")), conditions)
        for number in tempting:
            answer = client.get(f"/audio/{number:032x}", headers={"Accept": "application/json"})
            assert answer.status_code == 404
            assert answer.json()["problem"]
            assert get(client, f"/row/{number:032x}")  # the row itself is shown
        for path in (str(secret), f"..{secret}", quote(str(secret), safe=""), "%2e%2e/secret.txt", f"{1:032x}/../x"):
            assert client.get(f"/audio/{path}").status_code == 404


class TestMarks:
    def form(self, client: TestClient, **more: Any) -> dict[str, Any]:
        return {"row_id": f"{4:032x}", "mark": "drop", "note": "clicks", "token": token(get(client)), **more}

    def post(self, client: TestClient, form: dict[str, Any], **headers: str) -> Any:
        sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        return client.post("/mark", content=urlencode(form, doseq=True), headers=sent)

    def test_rows_are_marked_and_the_way_back_stays_on_this_site(self, client: TestClient, layout: Layout):
        rows = [f"{4:032x}", f"{99:032x}"]
        answer = self.post(client, self.form(client, row_id=rows, back="/?q=song&page=2"), Origin=f"http://{HOST}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?q=song&page=2")
        assert {row: (mark.mark, mark.note) for row, mark in read_marks(layout).items()} == dict.fromkeys(
            rows, ("drop", "clicks")
        )
        page = get(client, f"/row/{4:032x}")
        assert re.search(r'class="chip drop".*drop', page)
        assert 'value="clicks"' in page
        for back in ("https://example.org/x", "//example.org/x", "\\\\example.org/x", "javascript:alert(1)"):
            answer = self.post(client, self.form(client, mark="none", back=back))
            assert re.fullmatch(r"/[^/\\].*|/", answer.headers["location"])
        assert list(read_marks(layout)) == [rows[1]]

    def test_other_sites_and_other_names_are_refused(self, client: TestClient, layout: Layout):
        form = self.form(client)
        assert self.post(client, {**form, "token": "guess"}).status_code == 403
        assert self.post(client, {**form, "token": ""}).status_code == 403
        assert self.post(client, {**form, "token": "ü"}).status_code == 403
        for header in (
            {"Origin": "http://example.org"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "example.org"},
            {"Host": "127.0.0.1:80"},
            {"Host": ""},
        ):
            assert self.post(client, form, **header).status_code == 403, header
        assert client.get("/", headers={"Host": "rebound.example:7870"}).status_code == 403
        assert client.get("/mark").status_code == 405
        assert read_marks(layout) == {}

    @pytest.mark.parametrize("change", [{"row_id": "not there"}, {"row_id": []}, {"mark": "maybe"}, {"mark": ""}])
    def test_what_cannot_be_marked_is_told(self, client: TestClient, layout: Layout, change: dict):
        answer = self.post(client, self.form(client, **change), Accept="application/json")
        assert answer.status_code == 400
        assert answer.json()["problem"]
        assert read_marks(layout) == {}

    def test_marks_that_others_set_are_seen(self, client: TestClient, layout: Layout):
        assert listed(get(client, mark="keep")) == []
        set_marks(layout, {f"{5:032x}": "keep"})
        assert listed(get(client, mark="keep")) == [5]


class TestPages:
    def test_whatever_a_row_says_is_text(
        self, layout: Layout, songs: list[dict], conditions: Conditions, tmp_path: Path
    ):
        row = {**song(500, tmp_path), "row_id": HOSTILE, "title": HOSTILE, "artist": HOSTILE, "license": HOSTILE}
        row |= {"tags": {"names": [HOSTILE], "scores": [0.5]}, "flags": [HOSTILE], "transcript": {"text": HOSTILE}}
        commit(layout, 2, [row])
        set_marks(layout, {HOSTILE: "keep"}, HOSTILE)
        client = served(Live(IndexCache(layout, tmp_path / "index")), conditions)
        for page in (
            get(client, q="script"),
            get(client, f"/row/{quote(HOSTILE, safe='')}"),
            get(client, q=HOSTILE, tag=HOSTILE, license=HOSTILE),
            get(client, where=HOSTILE, code=400),
            get(client, sort=HOSTILE, code=400),
        ):
            assert "<img" not in page
            assert "<script>" not in page
            assert "مرحبا" in page
        assert total(get(client, tag=HOSTILE)) == 1

    def test_pages_load_nothing_from_elsewhere_and_say_so(self, reader: TestClient):
        for path in ("/", f"/row/{1:032x}", "/nowhere", "/assets/explore.js", f"/audio/{1:032x}"):
            answer = reader.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            if "text/html" in answer.headers["content-type"]:
                assert not re.findall(r'(?:src|href|action)="(?!/|#|data:)', answer.text)
                assert "style=" not in answer.text  # which the policy would refuse
        assert reader.get("/assets/..%2fapp.py").status_code == 404

    def test_a_row_that_is_not_there_is_told(self, reader: TestClient):
        assert "the dataset does not have this row" in get(reader, "/row/nothing", code=404)


class TestChange:
    def test_a_run_that_commits_is_seen(self, client: TestClient, layout: Layout, live: Live, songs: list[dict]):
        assert total(get(client)) == SONGS
        commit(layout, 2, songs[:10], supersedes=0)  # the other sixty are gone, and the file they lay in
        live._not_before = 0  # as if time had passed
        assert total(get(client)) == SONGS - 60
        assert "does not have this row" in get(client, f"/row/{40:032x}", code=404)

    def test_a_row_is_found_where_it_went_and_stale_figures_say_so(
        self, client: TestClient, layout: Layout, live: Live, songs: list[dict]
    ):
        commit(layout, 2, songs[:70], supersedes=0)
        live._not_before = time.monotonic() + 600
        assert "A run has changed the dataset" in get(client)
        assert "Song 40" in get(client, f"/row/{40:032x}")
        assert "A run has changed the dataset" not in get(client)

    def test_a_condition_on_files_that_are_gone_is_told(
        self, client: TestClient, layout: Layout, live: Live, songs: list[dict]
    ):
        commit(layout, 2, songs[:70], supersedes=0)
        live._not_before = time.monotonic() + 600
        assert "changed while it was read" in get(client, where="len(rhythm.beats_s) < 10", code=503)
        assert total(get(client, where="len(rhythm.beats_s) < 10")) == 10

    def test_an_empty_dataset_says_so(self, layout: Layout, conditions: Conditions, tmp_path: Path):
        for folder in ("_songmill/commits", "shards", "quarantine"):
            shutil.rmtree(Path(layout.url) / folder)
        client = served(Live(IndexCache(layout, tmp_path / "index")), conditions)
        assert "has no rows yet" in get(client)


class TestCommand:
    def test_a_folder_that_is_no_dataset_is_told(self, tmp_path: Path):
        assert "is no songmill dataset" in asked("explore", tmp_path, code=1)

    def test_a_port_that_is_taken_is_told(self, layout: Layout):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert f"--port {port} is taken" in asked("explore", layout.url, "--port", port, code=2)
