"""Word times stay inside the voice, in order, and are never made up."""

import numpy as np
import pytest
from faster_whisper.transcribe import Segment, Word
from hypothesis import given
from hypothesis import strategies as st

from stages.transcription.word_times import settle, voice_times
from tests.support.tracks import load

MOMENTS = st.lists(st.floats(0, 30, allow_nan=False), min_size=2, max_size=20).map(sorted)


def segment(*times: tuple[float, float]) -> Segment:
    words = [Word(start, end, " la", 0.9) for start, end in times]
    return Segment(0, 0, times[0][0], times[-1][1], " la" * len(words), [1], -0.3, 1.0, 0.1, words, None)


def test_padding_before_and_after_a_line_goes():
    (settled,) = settle([segment((1.0, 1.8), (1.8, 2.9))], [(1.4, 2.5), (5.0, 6.0)])
    assert [(word.start, word.end) for word in settled.words] == [(1.4, 1.8), (1.8, 2.5)]
    assert (settled.start, settled.end) == (1.4, 2.5)


def test_a_word_that_no_voice_was_heard_for_stays():
    (settled,) = settle([segment((1.0, 1.8))], [(3.0, 4.0)])
    assert (settled.start, settled.end) == (1.0, 1.8)


def test_a_word_that_begins_long_before_the_voice_keeps_its_beginning():
    (settled,) = settle([segment((1.0, 4.0))], [(3.0, 3.9)])
    assert (settled.start, settled.end) == (1.0, 3.9)


@given(MOMENTS, MOMENTS)
def test_words_shrink_stay_in_order_and_never_end_before_they_begin(words, voice):
    times = [*zip(words[::2], words[1::2], strict=False)]
    (settled,) = settle([segment(*times)], [*zip(voice[::2], voice[1::2], strict=False)])
    for word, (start, end) in zip(settled.words, times, strict=True):
        assert start <= word.start <= word.end <= end
    starts = [word.start for word in settled.words]
    assert starts == sorted(starts)


def test_a_real_voice_begins_where_its_level_rises(audio):
    speech = load(audio("speech-clips", "en/quick_brown_fox.wav")).mean(axis=0)
    padded = np.concatenate([np.zeros(44_100), speech, np.zeros(44_100)])
    stem = np.interp(np.arange(0, len(padded), 44_100 / 16_000), np.arange(len(padded)), padded).astype(np.float32)
    ((start, end),) = voice_times(stem, 0.2)
    loud = np.nonzero(np.abs(stem) > 0.02 * np.abs(stem).max())[0] / 16_000
    assert start == pytest.approx(loud[0], abs=0.12)
    assert end == pytest.approx(loud[-1], abs=0.3)
