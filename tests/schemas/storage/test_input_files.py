"""Songs, sidecars and manifests in buckets."""

import uuid

import pytest
from obstore.store import S3Store

from pipeline.ingest.manifest import list_songs
from pipeline.ingest.sidecars import read_sidecars
from schemas.storage import input_files
from schemas.storage.input_files import file_system
from stages.decode import Unreadable, opened
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.s3_server import BUCKET


@pytest.fixture
def proxy(s3, monkeypatch) -> FaultyS3:
    """Counts requests; file systems of other servers are forgotten."""
    input_files._buckets.cache_clear()
    with faulty_s3(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    input_files._buckets.cache_clear()


@pytest.fixture
def folder(s3) -> S3Store:
    return S3Store(BUCKET, prefix=uuid.uuid4().hex)


def url(folder: S3Store) -> str:
    return f"s3://{BUCKET}/{folder.prefix}"


def test_a_folder_is_listed_with_sizes_and_stamps_in_a_few_requests(folder, proxy):
    for number in range(40):
        folder.put(f"artist {number}/álbum/song.flac", b"x" * number)
        folder.put(f"artist {number}/álbum/song.txt", b"la")
    folder.put(".hidden/song.flac", b"x")
    songs = list_songs(url(folder)).songs
    assert songs.num_rows == 40
    assert songs["uri"][0].as_py() == f"{url(folder)}/artist 0/álbum/song.flac"
    assert sorted(songs["size"].to_pylist()) == [*range(40)]
    assert len(proxy.seen) <= 5
    before = songs["stamp"].to_pylist()
    folder.put("artist 0/álbum/song.flac", b"y")
    after = list_songs(url(folder)).songs["stamp"].to_pylist()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False] + [True] * 39
    folder.put("artist 1/álbum/song.txt", b"la la")
    assert (
        sum(old != new for old, new in zip(after, list_songs(url(folder)).songs["stamp"].to_pylist(), strict=True)) == 1
    )


def test_sidecars_are_known_from_the_listing(folder, proxy):
    for name, content in {"1.flac": b"x", "1.txt": b"la", "1.json": b'{"title": "One"}', "2.flac": b"x"}.items():
        folder.put(name, content)
    rows = list_songs(url(folder)).songs.to_pylist()
    assert [row["sidecars"] for row in rows] == [[".json", ".txt"], []]
    listed = len(proxy.seen)
    assert read_sidecars(rows[0]["uri"], rows[0]["sidecars"]) == {"title": "One", "lyrics": "la"}
    assert read_sidecars(rows[1]["uri"], rows[1]["sidecars"]) == {}
    assert not [path for _, path in proxy.seen[listed:] if "/2." in path]


def test_globs_single_files_and_manifests(folder, proxy):
    for name in ("a/1.flac", "a/2.flac", "b/3.flac", "b/note.pdf"):
        folder.put(name, b"x")
    assert list_songs(f"{url(folder)}/a/*.flac").songs.num_rows == 2
    assert list_songs(f"{url(folder)}/b/3.flac").songs.num_rows == 1
    folder.put("songs.jsonl", b'{"uri": "a/1.flac", "title": "one"}\n{"uri": "gone.flac"}\n')
    songs = list_songs(f"{url(folder)}/songs.jsonl").songs.to_pylist()
    assert [(song["uri"].rpartition("/")[2], song["title"], song["size"]) for song in songs] == [
        ("1.flac", "one", 1),
        ("gone.flac", None, None),
    ]


def test_a_song_is_fetched_once_for_all_who_read_it_in_turn(folder, proxy):
    folder.put("song.flac", b"content" * 1000)
    for _ in range(3):
        with opened(f"{url(folder)}/song.flac") as file:
            assert file.read() == b"content" * 1000
    assert [method for method, _ in proxy.seen].count("GET") == 1
    folder.put("song.flac", b"changed")
    with opened(f"{url(folder)}/song.flac") as file:
        assert file.read() == b"changed"


def test_a_large_file_is_read_in_pieces(folder, proxy, monkeypatch):
    monkeypatch.setattr(input_files, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(input_files, "_BUFFER_BYTES", 4096)
    content = bytes(range(256)) * 100
    folder.put("film.mp4", content)
    with opened(f"{url(folder)}/film.mp4") as file:
        file.seek(-10, 2)
        assert file.read() == content[-10:]
        file.seek(1000)
        assert file.read(6000) == content[1000:7000]
    assert [method for method, _ in proxy.seen].count("GET") <= 4


def test_a_song_that_is_gone_is_a_problem_of_that_song(folder, proxy):
    with pytest.raises(Unreadable, match=r"gone\.flac"), opened(f"{url(folder)}/gone.flac"):
        pass
    files, path = file_system(f"{url(folder)}/nowhere")
    assert not files.isdir(path)
    assert not files.isfile(path)
