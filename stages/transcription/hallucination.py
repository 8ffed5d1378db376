"""Text that Whisper hallucinates where nobody sings: loops, words on silence, and phrases from video subtitles."""

import re
import unicodedata

import numpy as np
from faster_whisper.transcribe import Segment

from stages import base
from stages.nets.whisper import RATE_HZ

# Credits and farewells that are common in its training subtitles, in the form that `_normalized` gives.
_STOCK_PHRASES = (
    # English
    "thank you( so much| very much)?( for watching| for listening)?( everyone| guys)?",
    "thanks( so much)? for (watching|listening)",
    "(please |like and |dont forget to )*subscribe( to (my|the|our) channel)?",
    "(see you|ill see you)( guys)?( in the)? next( time| video)",
    "bye",  # the whole may repeat; a repetition inside it would make the search exponential
    "you",
    "subtitles( created)? by.*",
    "transcri(bed|ption) by.*",
    # the other languages
    "(soustitres|soustitrage) .*",
    "merci( beaucoup)?( davoir regardé cette vidéo)?",
    "untertitel(ung)? .*",
    "vielen dank( fürs zuschauen)?",
    "subtítulos .*",
    "(muchas )?gracias( por ver( el video)?)?",
    "legendas? (pela|por) .*",
    "(muito )?obrigad[oa]( por assistir)?",
    "sottotitoli .*",
    "grazie( a tutti| per la visione| mille)?",
    "napisy .*",
    "(dziękuję|dzięki) za (uwagę|obejrzenie|oglądanie)",
    "(продолжение следует|субтитры .*|спасибо за просмотр)",
    "(altyazı .*|izlediğiniz için teşekkürler?)",
    "(titulky .*|ondertiteld? .*|ondertiteling .*|feliratok .*)",
    "(ご視聴|ご清聴)?(ありがとうございま(した|す))",
    "チャンネル登録.*",
    "(字幕|中文字幕|请不吝点赞|請不吝點贊|谢谢(大家)?(收看|观看)|謝謝(大家)?(收看|觀看)).*",
    "(.*(한번 )?)?(시청해|봐) ?주셔서 감사합니다",
    "(구독과|다음 영상).*",
    "धन्यवाद",
    ".*amaraorg.*",
)
_STOCK = re.compile(rf"(({'|'.join(_STOCK_PHRASES)}) ?)+")


class Guards(base.Params):
    """When a segment counts as hallucinated.

    Attributes:
        max_compression_ratio: zlib's ratio on the text of the segment's 30 s window; above it the text is a loop.
        stock_avg_logprob: average log probability per token in that window. A segment of nothing but stock phrases is
            hallucinated if it is below this and above `stock_no_speech_prob`.
        stock_no_speech_prob: that window's probability of no speech; see `stock_avg_logprob`.
        min_level_dbfs: level of the stem during a segment's words; below it is silence.
    """

    max_compression_ratio: float = 2.4
    stock_avg_logprob: float = -0.4
    stock_no_speech_prob: float = 0.4
    min_level_dbfs: float = -50.0

    def drop(self, segment: Segment, stem: np.ndarray) -> bool:
        """Whether a segment of a mono stem [samples] at 16 kHz counts as hallucinated."""
        loops = segment.compression_ratio > self.max_compression_ratio
        return loops or self._is_farewell(segment) or level_dbfs(segment, stem) < self.min_level_dbfs

    def _is_farewell(self, segment: Segment) -> bool:
        unsure = segment.avg_logprob < self.stock_avg_logprob and segment.no_speech_prob > self.stock_no_speech_prob
        return unsure and is_stock(segment.text)


def is_stock(text: str) -> bool:
    """Whether a text is nothing but stock phrases."""
    return _STOCK.fullmatch(_normalized(text)) is not None


def level_dbfs(segment: Segment, stem: np.ndarray) -> float:
    """RMS level of a mono stem [samples] at 16 kHz during a segment's words; minus infinity for digital silence."""
    words = segment.words or [segment]
    audio = np.concatenate([stem[int(word.start * RATE_HZ) : int(word.end * RATE_HZ) + 1] for word in words])
    power = float(np.square(audio).mean()) if audio.size else 0.0
    return 10 * float(np.log10(power)) if power else -np.inf


def _normalized(text: str) -> str:
    """Lower-case letters, digits and single spaces."""
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " if c.isspace() else "" for c in text.casefold())
    return " ".join("".join(kept).split())
