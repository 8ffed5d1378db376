"""Whatever songs, files and settings say, a terminal shows it and does nothing that it says."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import mutagen.flac
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.console.escaping import printable
from pipeline.ingest.manifest import row_id
from tests.support.command import environment
from tests.support.places import ROOT

BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
CONTROLS = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *BIDI, *range(0xD800, 0xE000)]
FORBIDDEN = [chr(code) for code in CONTROLS]
HOSTILE = "evil\x1b[35;41m\x1b]0;owned\x07\x9b35;41m\x7f\u202elive\u2066\u2028\x08\r[red][link=x]"
SHOWN = printable(HOSTILE)
COLOURS = re.compile(r"\x1b\[(?!35;41)[\d;]*m")
PROGRESS = re.compile(r"\x1b\[\?25[lh]|\x1b\[\d*[AK]|\r")
WORDS = "hello darkness my old friend I have come to talk with you again"
MARKER = "=-=-="
RUN = """
import json, sys
from pipeline.cli import app
from tests.support.without_workers import in_this_process
for arguments in json.loads(sys.stdin.readline()):
    try:
        with in_this_process():
            app(arguments)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        print(f"{sys.argv[1]}{ended.code}{sys.argv[1]}", flush=True)
"""


class TestPrintable:
    @given(st.text(st.characters(exclude_categories=[])), st.text(st.sampled_from(FORBIDDEN)))
    def test_nothing_that_steers_is_left(self, text: str, steering: str):
        assert not {*printable(text + steering + text)} & {*FORBIDDEN}

    @pytest.mark.parametrize("code", [0, 7, 8, 0x1B, 0x7F, 0x85, 0x9B, 0x2028, *BIDI, 0xDC80])
    def test_each_is_written_out(self, code: int):
        assert printable(f"a{chr(code)}b") == f"a\\u{code:04x}b"

    @given(st.text(st.characters(exclude_categories=[])))
    def test_a_printable_text_stays_as_it_is(self, text: str):
        assert printable(printable(text)) == printable(text)

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=FORBIDDEN)))
    def test_ordinary_text_stays_as_it_is(self, text: str):
        assert printable(text) == text

    @pytest.mark.parametrize(
        "text", ["tab\tand\nline", "مرحبا\u200f", "שלום\u200e", "👩\u200d👩\u200d👧 🏴\U000e0067", "नमस्ते", "日本語 é"]
    )
    def test_scripts_and_what_they_are_written_with_stay(self, text: str):
        assert printable(text) == text

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_json_says_the_same(self, text: str):
        said = printable(json.dumps([text], ensure_ascii=False))
        assert json.loads(said) == [text]


def on_a_terminal(*commands: Sequence[object]) -> list[tuple[int, str]]:
    """Exit codes and output of commands, whose stdout and stderr are a terminal."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, MARKER],
        env=environment(COLUMNS="200", TERM="xterm-256color"),
        stdin=subprocess.PIPE,
        stdout=end,
        stderr=end,
        cwd=ROOT,
    )
    os.close(end)
    seen = bytearray()
    reading = Thread(target=_read, args=(terminal, seen), daemon=True)
    reading.start()
    try:
        process.communicate(json.dumps([[str(part) for part in command] for command in commands]).encode() + b"\n", 840)
    finally:
        process.kill()
        os.close(terminal)
        print(seen.decode(errors="replace").replace("\x1b", "ESC"))
    told = re.split(f"{MARKER}(\\d+){MARKER}", seen.decode().replace("\r\n", "\n"))
    assert len(told) == 2 * len(commands) + 1, seen.decode()
    return [(int(code), out) for out, code in zip(told[::2], told[1::2], strict=False)]


def _read(terminal: int, seen: bytearray) -> None:
    try:
        while part := os.read(terminal, 65536):
            seen += part
    except OSError:  # the last process that had the other end has closed it
        return


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song, a copy of it and a broken one, whose names and tags are hostile."""
    folder = tmp_path_factory.mktemp("hostile") / f"songs {HOSTILE}"
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (44_100 * 6, 2))
    for name in ("a", "b"):
        file = folder / f"{name}{HOSTILE}.flac"
        soundfile.write(file, noise, 44_100, "PCM_16")
        song = mutagen.flac.FLAC(file)
        song["title"], song["artist"], song["album"] = HOSTILE, HOSTILE, HOSTILE
        song.save()
    (folder / f"c{HOSTILE}.flac").write_bytes(b"no song")
    return folder


def test_no_command_lets_data_steer_the_terminal(songs: Path):
    root = songs.parent
    dataset, settings, library = root / f"data {HOSTILE}", root / "run.yaml", root / "lyrics.parquet"
    settings.write_text(json.dumps({"input": {HOSTILE: HOSTILE}}))
    song = {"id": HOSTILE, "title": HOSTILE, "artist": HOSTILE, "language": "en", "license": "MIT", "text": WORDS}
    pq.write_table(pa.Table.from_pylist([song]), library)
    query = "select title, artist, uri from tracks"
    broken = row_id(str(next(songs.glob("c*"))))
    commands: dict[str, tuple[int, list[object]]] = {
        "curate": (0, ["curate", songs, "--out", dataset, "--stages", "decode,quality,fingerprint"]),
        "inspect": (0, ["inspect", dataset]),
        "sql": (0, ["inspect", dataset, "--sql", query]),
        "sql json": (0, ["inspect", dataset, "--sql", query, "--json"]),
        "wrong sql": (2, ["inspect", dataset, "--sql", f'select "{HOSTILE}"']),
        "compare": (0, ["inspect", dataset, "--compare", dataset]),
        "plan": (2, ["plan", songs, "--stages", HOSTILE]),
        "settings": (2, ["curate", "--config", settings]),
        "quarantine": (0, ["quarantine", dataset]),
        "show": (0, ["quarantine", dataset, "show", broken]),
        "whatif": (0, ["whatif", dataset, "--set", "quality.min_bandwidth_hz=90000"]),
        "verify": (0, ["verify", dataset]),
        "forget": (1, ["forget", dataset, "--track", HOSTILE]),
        "search": (0, ["lyrics", "search", library, WORDS, "--language", "en"]),
        "models": (2, ["models", "verify", HOSTILE]),
        "export": (2, ["export", "lrc", dataset, "--out", root / "lrc", "--verdicts", HOSTILE]),
        "explore": (1, ["explore", root / HOSTILE]),
        "option": (2, ["inspect", dataset, f"--{HOSTILE}"]),
        "command": (2, [HOSTILE]),
    }
    outputs = on_a_terminal(*(arguments for _, arguments in commands.values()))
    found = dict(zip(commands, outputs, strict=True))
    for name, (code, out) in found.items():
        assert code == commands[name][0], (name, out)
        left = COLOURS.sub("", PROGRESS.sub("", out) if name == "curate" else out)
        assert not {*left} & {*FORBIDDEN}, (name, out)
        assert "]8;" not in left, name  # a link
    for name in ("sql", "whatif"):
        assert "[red][link=x]" in COLOURS.sub("", found[name][1]), name
    assert SHOWN in COLOURS.sub("", found["whatif"][1])
    titles = json.loads(found["sql json"][1])
    assert titles == [{"title": HOSTILE, "artist": HOSTILE, "uri": titles[0]["uri"]}]
    assert titles[0]["uri"].endswith(f"{HOSTILE}.flac")
