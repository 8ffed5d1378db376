import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutagen.id3 import ID3, TALB, TCOP, TIT2, TLAN, TPE1, TXXX, USLT, WCOP
from mutagen.mp4 import MP4

from pipeline.ingest.file_tags import read_tags
from pipeline.ingest.left_out import LeftOut
from pipeline.ingest.licenses import is_allowed, normalize_license
from pipeline.ingest.manifest import MANIFEST, ManifestError, describe, fill_defaults, list_songs, read_manifest, row_id
from pipeline.ingest.sidecars import read_sidecars
from schemas import columns
from tests.support.audio import tone, write

SONG = tone(440.0, 0.5)


def uris(source: Path | str) -> list[str]:
    return read_manifest(str(source))["uri"].to_pylist()


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")


class TestListing:
    def test_a_folder_with_everything_below_it(self, tmp_path):
        songs = [tmp_path / name for name in ("b/deep/er/x.OPUS", "a [live].flac", "c.m4a")]
        touch(*songs, tmp_path / "cover.jpg", tmp_path / "a [live].lrc", tmp_path / ".b.wav", tmp_path / ".trash/c.wav")
        assert uris(tmp_path) == sorted(map(str, songs))

    def test_a_folder_whose_own_path_is_hidden(self, tmp_path):
        touch(tmp_path / ".cache" / "a.wav")
        assert uris(tmp_path / ".cache") == [str(tmp_path / ".cache" / "a.wav")]

    def test_a_relative_folder_gives_absolute_uris(self, tmp_path, monkeypatch):
        touch(tmp_path / "songs" / "a.wav")
        monkeypatch.chdir(tmp_path)
        assert uris("songs") == uris(tmp_path / "songs") == uris(f"file://{tmp_path}/songs")

    def test_a_glob(self, tmp_path):
        touch(tmp_path / "x/a.wav", tmp_path / "y/b.wav", tmp_path / "y/b.mp3")
        assert uris(tmp_path / "*" / "*.wav") == [str(tmp_path / "x/a.wav"), str(tmp_path / "y/b.wav")]

    def test_another_filesystem(self):
        memory = fsspec.filesystem("memory")
        memory.pipe({"/listing/a.wav": b"sound", "/listing/songs.jsonl": b'{"uri": "a.wav"}\n{"uri": "b.wav"}\n'})
        assert uris("memory://listing") == ["memory:///listing/a.wav"]
        manifest = read_manifest("memory://listing/songs.jsonl")
        assert manifest["uri"].to_pylist() == ["memory:///listing/a.wav", "memory:///listing/b.wav"]
        assert manifest["size"].to_pylist() == [5, None]

    def test_the_columns(self, tmp_path):
        touch(tmp_path / "a.wav")
        table = read_manifest(str(tmp_path))
        assert table.schema == MANIFEST
        assert set(MANIFEST.names) == set(columns.IDENTITY.names) - {"track_id"} | {"size", "stamp", "sidecars"}
        assert table["row_id"].to_pylist() == [row_id(str(tmp_path / "a.wav"))]
        assert table["size"].to_pylist() == [5]

    def test_links_are_followed_and_those_to_nothing_are_left_out(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "song").write_bytes(b"12345")
        (tmp_path / "songs").mkdir()
        (tmp_path / "songs" / "linked.mp3").symlink_to(tmp_path / "elsewhere" / "song")
        (tmp_path / "songs" / "dangling.mp3").symlink_to(tmp_path / "nowhere")
        found = list_songs(str(tmp_path / "songs"))
        assert found.songs["size"].to_pylist() == [5]
        assert found.left_out == LeftOut(not_regular=["dangling.mp3"])

    def test_a_glob_below_a_hidden_folder_and_a_file_whose_name_looks_like_a_pattern(self, tmp_path):
        folder = tmp_path / ".music"
        folder.mkdir()
        (folder / "a [live].mp3").write_bytes(b"1")
        (folder / ".b.mp3").write_bytes(b"1")
        assert read_manifest(f"{folder}/*.mp3").num_rows == 1
        assert read_manifest(str(folder / "a [live].mp3")).num_rows == 1

    def test_an_unknown_protocol_is_told(self):
        with pytest.raises(ManifestError, match="foo"):
            read_manifest("foo://bucket/songs")

    def test_colons_in_a_name_are_no_chain(self, tmp_path):
        (tmp_path / "a::b.mp3").write_bytes(b"123")
        (tmp_path / "list.jsonl").write_text('{"uri": "a::b.mp3", "language": "jpn"}')
        (row,) = read_manifest(str(tmp_path / "list.jsonl")).to_pylist()
        assert row["uri"] == str(tmp_path / "a::b.mp3")
        assert row["size"] == 3
        assert row["language"] == "ja"

    def test_the_stamp_follows_the_file(self, tmp_path):
        touch(tmp_path / "a.wav")
        before = read_manifest(str(tmp_path))["stamp"]
        assert read_manifest(str(tmp_path))["stamp"] == before
        os.utime(tmp_path / "a.wav", ns=(1, (tmp_path / "a.wav").stat().st_mtime_ns + 1_000_000))
        assert read_manifest(str(tmp_path))["stamp"] != before

    def test_a_name_that_is_no_text_is_left_out_aloud(self, tmp_path):
        touch(tmp_path / "a.wav")
        (tmp_path / os.fsdecode(b"\xff.wav")).write_bytes(b"sound")
        found = list_songs(str(tmp_path))
        assert found.songs["uri"].to_pylist() == [str(tmp_path / "a.wav")]
        assert found.left_out.sentence == "left out: 1 whose name is not UTF-8 (\\udcff.wav)"

    @pytest.mark.parametrize("source", ["", "*.wav", "nowhere", "nowhere/songs.jsonl"])
    def test_nothing_there(self, tmp_path, source):
        with pytest.raises(ManifestError, match="no songs"):
            read_manifest(str(tmp_path / source))


class TestLeftOut:
    @pytest.fixture
    def folder(self, tmp_path):
        """A song among things that only look like songs, and things that nobody takes for one."""
        songs = tmp_path / "songs"
        beside = ("a.lrc", "a.txt", "cover.JPG", "list.m3u", ".hidden.wma")
        touch(
            songs / "a.wav",
            *(songs / name for name in beside),
            songs / "sub" / "b.wma",
            songs / "c.WMA",
            songs / "old.bak",
        )
        os.mkfifo(songs / "pipe.wav")
        os.mkfifo(songs / "sub" / "pipe.lrc")
        (songs / "zero.flac").symlink_to("/dev/zero")
        (songs / "loop").symlink_to(songs)
        (songs / "circle.mp3").symlink_to(songs / "circle.mp3")
        return songs

    def test_only_regular_files_are_songs_and_the_rest_is_told(self, folder):
        found = list_songs(str(folder))
        assert found.songs["uri"].to_pylist() == [str(folder / "a.wav")]
        assert found.left_out.sentence == (
            "left out: 4 that are not regular files (circle.mp3, pipe.wav, sub/pipe.lrc, zero.flac), "
            "1 linked folder (loop), 3 with endings that are not decoded (.wma 2, .bak 1)"
        )

    def test_a_glob_and_a_single_path(self, folder):
        found = list_songs(f"{folder}/*.wav")
        assert (found.songs.num_rows, found.left_out) == (1, LeftOut(not_regular=["pipe.wav"]))
        with pytest.raises(ManifestError, match=r"no songs; .*left out: 1 that is not a regular file \(pipe.wav\)"):
            list_songs(str(folder / "pipe.wav"))

    def test_what_a_manifest_names_is_a_row_that_nobody_waits_for(self, folder):
        path = write_manifest(folder / "songs.jsonl", [{"uri": "a.wav"}, {"uri": "pipe.wav"}, {"uri": "zero.flac"}])
        assert read_manifest(path)["size"].to_pylist() == [5, None, None]

    def test_sidecars_and_tags_that_are_pipes_are_not_waited_for(self, folder):
        os.mkfifo(folder / "a.json")
        (folder / "a.txt").unlink()
        (folder / "a.txt").symlink_to("/dev/zero")
        assert read_sidecars(str(folder / "a.wav")) == {"lyrics": "sound"}
        assert read_tags(str(folder / "pipe.wav")) == {}

    def test_names_and_endings_reach_a_terminal_as_text(self, tmp_path):
        touch(tmp_path / "a.wav", tmp_path / "b.\x1b[31m", tmp_path / "c", tmp_path / "1.5 - a live take")
        os.mkfifo(tmp_path / "\x1b]0;title\x07.wav")
        sentence = list_songs(str(tmp_path)).left_out.sentence
        assert sentence.isprintable()
        assert sentence.endswith("3 with endings that are not decoded (no ending 3)")


ROWS = [
    {"uri": "b.wav", "title": "B", "artist": "Ann", "lyrics": "la,\nla", "license": "cc-by-4.0", "source": "us"},
    {"uri": "sub/a.wav", "title": None, "artist": "", "lyrics": None, "license": None, "source": None},
]


def write_manifest(path: Path, rows: list[dict[str, object]]) -> str:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["songs.jsonl", "songs.csv", "songs.parquet"])
class TestManifestFile:
    def test_rows(self, tmp_path, name):
        touch(tmp_path / "b.wav")
        first, second = read_manifest(write_manifest(tmp_path / name, ROWS)).to_pylist()
        assert first["uri"] == str(tmp_path / "b.wav")
        assert (first["title"], first["artist"], first["given_lyrics"]) == ("B", "Ann", "la,\nla")
        assert (first["license"], first["source"], first["size"]) == ("CC-BY-4.0", "us", 5)
        assert second["uri"] == str(tmp_path / "sub/a.wav")
        assert (second["artist"], second["size"], second["stamp"]) == (None, None, None)

    def test_unknown_columns_are_named(self, tmp_path, name, caplog):
        read_manifest(write_manifest(tmp_path / name, [{"uri": "a.wav", "mood": "sad", "bpm": 3}]))
        assert "bpm, mood" in caplog.text

    def test_a_uri_given_twice(self, tmp_path, name):
        rows = [{"uri": uri} for uri in ("a.wav", "b.wav", f"{tmp_path}/./a.wav")]
        with pytest.raises(ManifestError, match="same uri"):
            read_manifest(write_manifest(tmp_path / name, rows))

    def test_rows_without_a_uri(self, tmp_path, name):
        rows = [{"uri": uri, "title": "x"} for uri in ("a.wav", " ", "b.wav", None)]
        with pytest.raises(ManifestError, match=r"no uri in lines \d, \d"):
            read_manifest(write_manifest(tmp_path / name, rows))

    def test_no_uri_column(self, tmp_path, name):
        with pytest.raises(ManifestError, match=r"no uri|no column uri"):
            read_manifest(write_manifest(tmp_path / name, [{"path": "a.wav"}]))

    def test_not_what_its_name_says(self, tmp_path, name):
        (tmp_path / name).write_bytes(b'{"uri": "a.wav"}\n\xff\xfe{nonsense\n')
        with pytest.raises(ManifestError, match=name):
            read_manifest(str(tmp_path / name))


def test_errors_name_the_lines(tmp_path):
    lines = ['{"uri": "a.wav"}', "", '{"uri": ""}', '{"uri": "a.wav"}', '{"uri": "b.wav", "title": ["x"]}', "nonsense"]
    for chosen, message in (
        ([0, 2], "no uri in line 2"),
        ([0, 1, 3], "in lines 1, 3"),
        ([0, 4], "line 2: title"),
        ([0, 1, 5], "line 3 is not JSON"),
    ):
        path = tmp_path / "songs.jsonl"
        path.write_text("\n".join(lines[i] for i in chosen))
        with pytest.raises(ManifestError, match=message):
            read_manifest(str(path))


def id3(path: Path, *frames: object) -> Path:
    tags = ID3()
    for frame in frames:
        tags.add(frame)
    tags.save(path)
    return path


class TestTags:
    FACTS = {"title": "Song", "artist": "Ann", "album": "LP"}

    @pytest.mark.parametrize("suffix", [".flac", ".opus", ".ogg", ".m4a", ".mp3"])
    def test_what_every_family_keeps(self, tmp_path, suffix):
        rate_hz = 48_000
        path = write(tmp_path / f"a{suffix}", tone(440.0, 0.5, rate_hz), rate_hz, metadata=self.FACTS)
        assert read_tags(str(path)).items() >= self.FACTS.items()

    def test_id3(self, tmp_path):
        frames = TIT2(text="T"), TPE1(text="P"), TALB(text="L"), TLAN(text="deu"), USLT(lang="deu", text="La\nla")
        path = id3(write(tmp_path / "a.mp3", SONG), *frames, WCOP(url="https://creativecommons.org/licenses/by/3.0/"))
        assert read_tags(str(path)) == {
            "title": "T",
            "artist": "P",
            "album": "L",
            "language": "deu",
            "lyrics": "La\nla",
            "license": "CC-BY-3.0",
        }

    def test_vorbis_comments(self, tmp_path):
        facts = {"LYRICS": "la", "LICENSE": "http://creativecommons.org/publicdomain/zero/1.0/", "LANGUAGE": "en"}
        path = write(tmp_path / "a.flac", SONG, metadata=facts)
        assert read_tags(str(path)) == {"lyrics": "la", "license": "CC0-1.0", "language": "en"}

    def test_mp4(self, tmp_path):
        path = write(tmp_path / "a.m4a", SONG)
        file = MP4(path)
        file.tags["©lyr"] = ["la"]
        file.tags["----:com.apple.iTunes:LICENSE"] = [b"CC-BY-SA-4.0"]
        file.save()
        assert read_tags(str(path)).items() >= {"lyrics": "la", "license": "CC-BY-SA-4.0"}.items()

    def test_a_copyright_notice_is_no_license(self, tmp_path):
        path = id3(write(tmp_path / "a.mp3", SONG), TCOP(text="2020 Ann"), TXXX(desc="comment", text="MIT"))
        assert "license" not in read_tags(str(path))

    def test_tags_that_would_flood_the_memory_are_none(self, tmp_path, caplog):
        (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x08free" * 200_000)
        assert read_tags(str(tmp_path / "a.m4a")) == {}
        assert "100,000 pieces" in caplog.text
        path = id3(write(tmp_path / "a.mp3", SONG), TIT2(text="T"), USLT(lang="deu", text="la" * (1 << 20)))
        assert read_tags(str(path)) == {"title": "T"}

    @pytest.mark.parametrize("content", [b"", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f", b"fLaC\x00\xff\xff\xff", b"text"])
    def test_damaged_files_have_none(self, tmp_path, content):
        (tmp_path / "a.mp3").write_bytes(content)
        assert read_tags(str(tmp_path / "a.mp3")) == {}
        assert read_tags(str(tmp_path / "missing.mp3")) == {}


class TestSidecars:
    def test_timed_lyrics_win(self, tmp_path):
        (tmp_path / "a.json").write_text('{"lyrics": "json", "title": "J", "bpm": 3, "album": ""}')
        assert read_sidecars(str(tmp_path / "a.mp3")) == {"lyrics": "json", "title": "J"}
        (tmp_path / "a.txt").write_text("plain")
        assert read_sidecars(str(tmp_path / "a.mp3"))["lyrics"] == "plain"
        (tmp_path / "a.lrc").write_text("[00:01.00]la\n[00:02.50]la\n")
        assert read_sidecars(str(tmp_path / "a.mp3"))["lyrics"] == "[00:01.00]la\n[00:02.50]la"

    def test_an_empty_file_is_no_lyrics(self, tmp_path):
        touch(tmp_path / "a.txt")
        (tmp_path / "a.lrc").write_bytes(b"")
        assert read_sidecars(str(tmp_path / "a.mp3")) == {"lyrics": "sound"}

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    def test_encodings(self, tmp_path, encoding):
        (tmp_path / "a.txt").write_bytes("Für Elise, naïve".encode(encoding))
        assert read_sidecars(str(tmp_path / "a.mp3")) == {"lyrics": "Für Elise, naïve"}

    @pytest.mark.parametrize("content", [b"\x81\xff\x00", b"{", b"[]", b"3"])
    def test_nonsense_harms_nothing(self, tmp_path, content):
        (tmp_path / "a.json").write_bytes(content)
        assert read_sidecars(str(tmp_path / "a.mp3")) == {}


class TestDescribe:
    def test_manifest_before_sidecar_before_tags(self, tmp_path):
        facts = {"title": "tag", "artist": "tag", "album": "tag"}
        path = write(tmp_path / "a.flac", SONG, metadata=facts)
        (tmp_path / "a.json").write_text('{"title": "sidecar", "artist": "sidecar"}')
        manifest = write_manifest(tmp_path / "songs.jsonl", [{"uri": "a.flac", "title": "manifest"}])
        row = read_manifest(manifest).to_pylist()[0]
        described = describe(str(path), row)
        assert [described[name] for name in facts] == ["manifest", "sidecar", "tag"]
        assert described.keys() == row.keys()

    def test_a_missing_file_keeps_what_the_manifest_says(self, tmp_path):
        manifest = write_manifest(tmp_path / "songs.jsonl", [{"uri": "a.flac", "title": "T", "license": "MIT"}])
        row = read_manifest(manifest).to_pylist()[0]
        assert describe(row["uri"], row) == row

    def test_defaults_come_last(self):
        rows = pa.Table.from_pylist([{"license": "MIT"}, {"source": "here"}], MANIFEST)
        filled = fill_defaults(rows, license="https://creativecommons.org/licenses/by/4.0/", source="there")
        assert filled["license"].to_pylist() == ["MIT", "CC-BY-4.0"]
        assert filled["source"].to_pylist() == ["there", "here"]
        assert fill_defaults(rows, license=None, source=None) == rows


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/3.0/deed.de", "CC-BY-NC-SA-3.0"),
        ("http://creativecommons.org/licenses/by-nd-nc/1.0/", "CC-BY-NC-ND-1.0"),
        ("https://creativecommons.org/licenses/by-nc/3.0/us/", "https://creativecommons.org/licenses/by-nc/3.0/us/"),
        ("Licensed to the public under http://creativecommons.org/licenses/by-nc/2.0/ verify here", "CC-BY-NC-2.0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("cc by-sa 4.0", "CC-BY-SA-4.0"),
        ("cc0", "CC0-1.0"),
        ("mit", "MIT"),
        ("https://opensource.org/license/mit", "MIT"),
        ("https://www.apache.org/licenses/LICENSE-2.0.txt", "Apache-2.0"),
        ("https://spdx.org/licenses/ODbL-1.0.html", "ODbL-1.0"),
        ("https://label.example/terms", "https://label.example/terms"),
        (" All rights reserved ", "All rights reserved"),
        ("  ", None),
        (None, None),
    ],
)
def test_normalize_license(text, license):
    assert normalize_license(text) == license
    assert normalize_license(license) == license


@pytest.mark.parametrize(
    ("license", "allowed", "kept"),
    [
        ("CC-BY-4.0", ["CC-BY"], True),
        ("CC-BY-NC-4.0", ["CC-BY"], False),
        ("CC-BY-NC-4.0", ["CC-BY", "cc-by-nc"], True),
        ("CC-BY-NC-4.0", ["CC"], True),
        ("CC0-1.0", ["CC"], True),
        ("CC0-1.0", ["CC-BY-4.0"], False),
        ("GPL-3.0-only", ["GPL"], True),
        ("MIT", ["mit"], True),
        ("MIT-0", ["MIT"], True),
        ("all rights reserved", ["MIT"], False),
        (None, ["MIT"], False),
        (None, ["unknown"], True),
    ],
)
def test_licenses_are_allowed_by_id_and_by_family(license, allowed, kept):
    assert is_allowed(license, allowed) == kept
