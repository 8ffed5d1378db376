"""Known lyrics against noisy transcripts of excerpts: the right song is found, in time, and no other one."""

import json
import random
from pathlib import Path

import mutagen
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from schemas import columns
from stages.base import Track
from stages.lyrics import Lyrics
from stages.matching.alignment import Word, align
from stages.matching.index import ContainmentSketch, LshSketch
from stages.matching.library import LyricLibrary, LyricSong
from stages.phonemes import Phonemes
from stages.text.bpe import CORPUS
from stages.text.language import LANGUAGES
from stages.text.lyric_text import LyricLine, parse

DEMO = {
    "checkpoint": ("audio_ace_step_1_5_checkpoint-1.mp3", "en"),
    "split": ("audio_ace_step_1_5_split-1.mp3", "en"),
    "split_4b": ("audio_ace_step_1_5_split_4b-1.mp3", "en"),
    "fox": ("audio_ace_step_1_t2a_song-1.mp3", "ja"),
}
UNSPACED = {"ja", "zh"}


def tagged_lyrics(song: Path) -> str:
    """The lyrics in the `prompt` tag of a demo song."""
    workflow = json.loads(mutagen.File(song).tags["TXXX:prompt"].text[0])
    return next(node["inputs"]["lyrics"] for node in workflow.values() if "lyrics" in node["inputs"])


def public_domain() -> dict[str, str]:
    """Verses of every language, each language's as one song."""
    parts = CORPUS.read_text(encoding="utf-8").split("\n[")[1:]
    return {part[:2]: part.split("]\n", 1)[1].replace("own:\n", "") for part in parts}


@pytest.fixture(scope="module")
def songs(audio) -> dict[str, tuple[str, str]]:
    """id -> (language, lyrics): four demo songs, and seventeen of public-domain verses."""
    demo = {name: (language, tagged_lyrics(audio("demo-songs", file))) for name, (file, language) in DEMO.items()}
    return demo | {f"verses-{language}": (language, text) for language, text in public_domain().items()}


@pytest.fixture(scope="module")
def library(songs, tmp_path_factory) -> Path:
    rows = [
        {"id": id, "title": id, "artist": "", "language": language, "text": text, "license": "MIT"}
        for id, (language, text) in songs.items()
    ]
    path = tmp_path_factory.mktemp("library") / "lyrics.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def stage(library) -> Lyrics:
    stage = Lyrics(Lyrics.Params(library=library))
    stage.setup({})
    return stage


def words_of(line: str, language: str) -> list[str]:
    return list(line.replace(" ", "").replace("　", "")) if language in UNSPACED else line.split()


def sing(lines: list[str], language: str, segment_words: int | None = None) -> dict:
    """A transcript: a word every 0.4 s from second 10 on, half a second's rest between segments.

    A segment is a line, or `segment_words` words across the lines.
    """
    groups = [words_of(line, language) for line in lines]
    if segment_words:
        flat = [word for group in groups for word in group]
        groups = [flat[start : start + segment_words] for start in range(0, len(flat), segment_words)]
    space, segments, now_s = "" if language in UNSPACED else " ", [], 10.0
    for group in filter(None, groups):
        words = [
            {"start_s": now_s + 0.4 * i, "end_s": now_s + 0.4 * i + 0.35, "text": space + word}
            for i, word in enumerate(group)
        ]
        end_s = words[-1]["end_s"]
        segments.append({"start_s": now_s, "end_s": end_s, "text": space.join(group), "words": words})
        now_s = end_s + 0.5
    return {"text": " ".join(segment["text"] for segment in segments), "language": language, "segments": segments}


def mishear(lines: list[str], language: str, share: float, rng: random.Random) -> list[str]:
    """That share of the words replaced by others of the song (half of them), lost, or doubled by another."""
    vocabulary = [word for line in lines for word in words_of(line, language)]
    heard = []
    for line in lines:
        words: list[str] = []
        for word in words_of(line, language):
            if rng.random() >= share:
                words.append(word)
                continue
            words += rng.choice([[rng.choice(vocabulary)]] * 2 + [[], [word, rng.choice(vocabulary)]])
        heard.append(("" if language in UNSPACED else " ").join(words))
    return heard


def measure(stage: Lyrics, transcript: dict | None, **given: str) -> dict:
    phonemes = Phonemes()
    phonemes.setup({})
    heard = pa.table({"transcript": pa.array([transcript], type=columns.TRANSCRIPT)})
    heard = heard.append_column(
        "phonemes", pa.array([phonemes.process(Track(heard, 0))["phonemes"]], type=columns.PHONEMES)
    )
    for name, value in given.items():
        heard = heard.append_column(name, pa.array([value], type=pa.string()))
    column = stage.process(Track(heard, 0))["lyrics"]
    return pa.array([column], type=columns.LYRICS)[0].as_py()


def sung(lyrics: str) -> list[str]:
    return [line.text for line in parse(lyrics)]


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.3])
def test_excerpts_with_skipped_lines_are_found_despite_misheard_words(stage, songs, noise):
    found = {}
    for id, (language, lyrics) in songs.items():
        rng = random.Random(f"{id} {noise}")
        lines = sung(lyrics)
        start = rng.randrange(max(1, len(lines) - 10))
        excerpt = [line for line in lines[start : start + 10] if rng.random() > 0.2]
        heard = sing(mishear(excerpt, language, noise, rng), language, segment_words=rng.randint(5, 12))
        found[id] = measure(stage, heard)["song_id"]
    assert found == {id: id for id in songs}


def test_unrelated_songs_are_never_found(library, songs, tmp_path):
    """Every song is heard, whole and in part, against a library that lacks it."""
    table = pq.read_table(library)
    for id, (language, lyrics) in songs.items():
        others = table.filter(pc.not_equal(table["id"], id))
        pq.write_table(others, tmp_path / "others.parquet")
        stage = Lyrics(Lyrics.Params(library=tmp_path / "others.parquet"))
        stage.setup({})
        for lines in (sung(lyrics), sung(lyrics)[:2], sung(lyrics)[-6:]):
            column = measure(stage, sing(lines, language))
            assert column["song_id"] is None, id
            assert column["score"] is column["coverage"] is None


def test_lines_get_the_times_they_are_sung_at(stage, songs):
    lines = sung(songs["split_4b"][1])
    heard = [*lines[2:5], "something else entirely that nobody wrote", *lines[6:8]]
    transcript = sing(heard, "en")
    column = measure(stage, transcript)
    assert column["song_id"] == "split_4b"
    assert [line["text"] for line in column["lines"] if line["verdict"] != "extra"] == lines
    assert [line["text"] for line in column["lines"] if line["verdict"] == "extra"] == [heard[3]]
    placed = {line["text"]: line for line in column["lines"] if line["verdict"] == "canonical"}
    assert set(placed) == {*lines[2:5], *lines[6:8]}
    spans = {segment["text"]: (segment["start_s"], segment["end_s"]) for segment in transcript["segments"]}
    for text, line in placed.items():
        assert line["score"] > 0.9
        assert (line["start_s"], line["end_s"]) == pytest.approx(spans[text])
    assert {line["start_s"] for line in column["lines"] if line["verdict"] == "missing"} == {None}
    spoken = sum(len(segment["text"]) for segment in transcript["segments"])
    alien = len("something else entirely that nobody wrote")
    assert column["coverage"] == pytest.approx(1 - alien / spoken, abs=0.05)


def test_japanese_lines_are_found_when_kana_are_heard_as_kanji(stage):
    transcript = sing(["ゆれるよ風の中", "見つめる世界を", "フワフワしっぽは"], "ja", segment_words=30)
    column = measure(stage, transcript)
    assert column["song_id"] == "fox"
    assert [line["text"] for line in column["lines"] if line["verdict"] == "canonical"] == [
        "ゆれるよ かぜのなか",
        "みつめる せかいを",
        "ふわふわ しっぽは",
    ]


def test_segments_without_word_times_are_enough(stage, songs):
    transcript = sing(sung(songs["split"][1])[3:9], "en")
    for segment in transcript["segments"]:
        segment["words"] = []
    column = measure(stage, transcript)
    assert column["song_id"] == "split"
    matched = [line for line in column["lines"] if line["verdict"] == "canonical"]
    assert len(matched) == 6
    assert matched[0]["start_s"] == 10.0
    assert matched[-1]["end_s"] == pytest.approx(transcript["segments"][-1]["end_s"])


def test_the_transcript_stays_where_nothing_matches(stage):
    transcript = sing(["Colourless green ideas", "sleep furiously"], "en")
    column = measure(stage, transcript)
    assert column["song_id"] is None
    assert [(line["text"], line["verdict"]) for line in column["lines"]] == [
        ("Colourless green ideas", "heard"),
        ("sleep furiously", "heard"),
    ]
    assert column["lines"][0]["start_s"] == 10.0


@pytest.mark.parametrize("text", ["oh yeah", "", "[inst]"])
def test_next_to_nothing_heard_matches_nothing(stage, text):
    transcript = sing([text], "en") | {"text": text}
    assert measure(stage, transcript)["song_id"] is None
    assert measure(stage, None)["lines"] == []


def given_stage() -> Lyrics:
    stage = Lyrics()
    stage.setup({})
    return stage


VERSES = ["Neon lights they flicker bright", "City hums in dead of night", "Turn it up and let it flow", "Here we go"]


def lrc(shift_s: float) -> str:
    """`VERSES` at the times `sing` sings the first three, shifted, and the last one five seconds later."""
    starts = [segment["start_s"] for segment in sing(VERSES[:3], "en")["segments"]]
    lines = [f"[00:{start + shift_s:05.2f}]{text}" for start, text in zip([*starts, 21.0], VERSES, strict=True)]
    return "\n".join(["[ti:Neon]", "[ar:Nobody]", *lines, "[00:40.00]"])


def test_given_lyrics_are_verified():
    heard = sing(VERSES[:3], "en")
    column = measure(given_stage(), heard, given_lyrics="[Verse]\n" + "\n".join(VERSES), language=None)
    assert column["song_id"] == "given"
    assert [line["verdict"] for line in column["lines"]] == ["canonical"] * 3 + ["missing"]
    wrong = measure(given_stage(), heard, given_lyrics="Amazing grace how sweet the sound\nThat saved a wretch like me")
    assert wrong["song_id"] is None


def test_lrc_times_are_kept_where_they_are_true():
    heard = sing(VERSES[:3], "en")
    column = measure(given_stage(), heard, given_lyrics=lrc(-0.3))
    starts = [line["start_s"] for line in column["lines"]]
    assert starts[:3] == pytest.approx([segment["start_s"] - 0.3 for segment in heard["segments"]], abs=0.01)
    shifted = measure(given_stage(), heard, given_lyrics=lrc(5.0))
    assert [line["start_s"] for line in shifted["lines"]][:3] == pytest.approx(
        [segment["start_s"] for segment in heard["segments"]]
    )


def test_given_lyrics_win_over_the_same_in_the_library(stage, songs):
    lyrics = songs["split_4b"][1]
    assert measure(stage, sing(sung(lyrics)[:6], "en"), given_lyrics=lyrics)["song_id"] == "given"


def test_lrc_is_parsed():
    text = "[offset:+500]\r\n[00:12.50][01:02:25]Oh <00:12.80>yeah\r\n[00:13.00]\r\n[ar:X]\r\n[00:20]Hello  world"
    assert parse(text) == [LyricLine("Oh yeah", 12.0), LyricLine("Hello world", 19.5), LyricLine("Oh yeah", 61.75)]
    assert parse("[Verse 1]\n\nHello\n[Chorus] \n(la la)") == [LyricLine("Hello"), LyricLine("(la la)")]
    assert parse("") == []


@pytest.mark.parametrize(("sketch", "part"), [(ContainmentSketch(), slice(700, 1000)), (LshSketch(), slice(100, 1400))])
def test_the_index_proposes_songs_that_hold_a_passage(sketch, part):
    rng = random.Random(0)
    phones = ["".join(rng.choices("abdeiklmnoprstuvwɔəɪʊʃ", k=1500)) for _ in range(60)]
    songs = [LyricSong(str(i), [LyricLine("la")], [text]) for i, text in enumerate(phones)]
    library = LyricLibrary.of(songs, sketch)
    assert [library.candidates(text[part], most=1)[0].song for text in phones] == songs
    assert library.candidates("", most=5) == []


def test_the_library_is_part_of_the_fingerprint(library):
    assert Lyrics(Lyrics.Params(library=library)).files == (library,)
    assert Lyrics().files == ()


def test_public_domain_verses_cover_every_language():
    assert set(public_domain()) == set(LANGUAGES)


def test_a_chorus_that_is_written_once_is_placed_each_time(stage, songs):
    verse, chorus = sung(songs["split"][1])[3:7], sung(songs["split"][1])[9:11]
    order = [*chorus, *verse, *chorus, "Sing along now everybody", *chorus]
    heard = sing(order, "en")
    column = measure(given_stage(), heard, given_lyrics="\n".join([*verse, *chorus]))
    assert [(line["text"], line["verdict"]) for line in column["lines"]] == [
        (line, "extra" if line.startswith("Sing along") else "canonical") for line in order
    ]
    for line, segment in zip(column["lines"], heard["segments"], strict=True):
        assert (line["start_s"], line["end_s"]) == pytest.approx((segment["start_s"], segment["end_s"]), abs=0.01)
    numbers = {line["text"]: line["library_line"] for line in column["lines"]}
    assert [numbers[line] for line in (*verse, *chorus)] == list(range(6))
    assert numbers["Sing along now everybody"] is None


def test_a_line_that_was_sung_otherwise_keeps_what_was_heard():
    heard = sing([VERSES[0], "The rocks that melt before the burning sea", VERSES[2]], "en")
    given = [VERSES[0], "The rocks that stand beside the silver sea", VERSES[2], "A line nobody ever sings at all"]
    lines = measure(given_stage(), heard, given_lyrics="\n".join(given))["lines"]
    assert [line["verdict"] for line in lines] == ["canonical", "heard", "canonical", "missing"]
    assert lines[1]["text"] == "The rocks that melt before the burning sea"
    assert lines[1]["library_text"] == given[1]
    assert lines[3]["start_s"] is None
    assert lines[3]["text"] == given[3]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_words_of_a_line_have_the_times_they_are_sung_at(stage, songs, language):
    lyrics = sung(songs["split" if language == "en" else "fox"][1])[3:7]
    heard = sing(lyrics, language)
    lines = measure(given_stage(), heard, given_lyrics="\n".join(lyrics), language=language)["lines"]
    for line, segment in zip(lines, heard["segments"], strict=True):
        assert line["verdict"] == "canonical"
        starts = [word["start_s"] for word in line["words"]]
        assert starts == sorted(starts)
        assert all(word["start_s"] <= word["end_s"] for word in line["words"])
        assert (starts[0], line["words"][-1]["end_s"]) == pytest.approx(
            (segment["start_s"], segment["end_s"]), abs=0.05
        )
        if language == "en":
            assert [word["text"] for word in line["words"]] == line["text"].split()
            apart = [abs(a - b["start_s"]) for a, b in zip(starts, segment["words"], strict=True)]
            assert max(apart) < 0.4  # less than a word


def test_songs_that_fit_alike_are_both_named(library, songs, tmp_path):
    rows = pq.read_table(library).to_pylist()
    copy = next(row for row in rows if row["id"] == "split")
    lines = copy["text"].splitlines()
    cover = {**copy, "id": "split-live", "text": "\n".join([*lines[:-3], "Thank you good night"])}
    pq.write_table(pa.Table.from_pylist([*rows, cover]), tmp_path / "two.parquet")
    stage = Lyrics(Lyrics.Params(library=tmp_path / "two.parquet"))
    stage.setup({})
    column = measure(stage, sing(sung(songs["split"][1])[3:9], "en"))
    assert {column["song_id"], *column["alternatives"]} == {"split", "split-live"}
    assert measure(stage, sing(sung(songs["checkpoint"][1])[3:9], "en"))["alternatives"] == []


@pytest.mark.parametrize(
    ("said", "heard"),
    [("lɪsənɪŋskaɪz", "lɪstənændskaɪz"), ("həʊldmaɪhænd", "ɡəʊldmaɪhɛnt"), ("bædbɔɪzdaʊntaʊn", "pɛtbɔɪstaʊndaʊn")],
)
def test_misheard_phones_are_nearer_than_other_ones(said, heard):
    def similarity(phones: str) -> float:
        place = align([said], [Word(phones, 0.0, 1.0)], 0.1, 0.9).lines[0]
        return place.similarity if place else 0.0

    rng = random.Random(0)
    others = ["".join(rng.sample(heard, len(heard))) for _ in range(20)]
    assert similarity(heard) > max(map(similarity, others))
    assert similarity(said) == 1.0
