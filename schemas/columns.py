"""Arrow types of every column a shard can have.

Readers of shards rely on these names and units; a field's unit is in its Arrow metadata under `unit`. Times are seconds
from the start of the file, ratios are in 0..1.
"""

import pyarrow as pa


def field(name: str, type: pa.DataType, unit: str | None = None) -> pa.Field:
    """A nullable field that carries its unit."""
    return pa.field(name, type, metadata={"unit": unit} if unit else None)


def stage_struct(*fields: pa.Field) -> pa.StructType:
    """The struct of a stage's column: its fields, then `model`, which names what computed them."""
    return pa.struct([*fields, field("model", pa.string())])


_SPAN = (field("start_s", pa.float64(), "s"), field("end_s", pa.float64(), "s"))

# Which song this is. Filled from the manifest, tags and sidecars, not by a stage.
IDENTITY = pa.schema(
    [
        field("row_id", pa.string()),
        field("track_id", pa.string()),
        field("uri", pa.string()),
        field("source", pa.string()),
        field("license", pa.string()),
        field("title", pa.string()),
        field("artist", pa.string()),
        field("album", pa.string()),
        field("language", pa.string()),  # as declared by the manifest; transcript.language is the detected one
        field("given_lyrics", pa.string()),  # as supplied with the song: plain text or LRC
    ]
)

AUDIO = stage_struct(
    field("duration_s", pa.float64(), "s"),
    field("sample_rate_hz", pa.int32(), "Hz"),
    field("channels", pa.int32()),
    field("codec", pa.string()),
)

DEDUP = stage_struct(field("duplicate_of", pa.string()), field("similarity", pa.float64(), "ratio"))

QUALITY = stage_struct(
    field("loudness_lufs", pa.float64(), "LUFS"),
    field("true_peak_dbtp", pa.float64(), "dBTP"),
    field("clipped_ratio", pa.float64(), "ratio"),
    field("silent_ratio", pa.float64(), "ratio"),
    field("bandwidth_hz", pa.float64(), "Hz"),
    field("stereo_correlation", pa.float64()),
    field("noise_floor_db", pa.float64(), "dBFS"),
)

AESTHETICS = stage_struct(*(field(score, pa.float32(), "1..10") for score in ("ce", "cu", "pc", "pq")))

EVENTS = stage_struct(
    *(field(event, pa.float32(), "probability") for event in ("live", "applause", "speech", "singing"))
)

VOCALS = stage_struct(field("has_vocals", pa.bool_()), field("active_ratio", pa.float32(), "ratio"))

TRANSCRIPT = stage_struct(
    field("text", pa.string()),
    field("language", pa.string()),
    field("avg_logprob", pa.float32()),
    field("no_speech_prob", pa.float32(), "probability"),
    field(
        "segments",
        pa.list_(
            pa.struct(
                [
                    *_SPAN,
                    field("text", pa.string()),
                    field("words", pa.list_(pa.struct([*_SPAN, field("text", pa.string())]))),
                ]
            )
        ),
    ),
)

PHONEMES = stage_struct(field("lines", pa.list_(pa.string()), "IPA"))

LYRICS = stage_struct(
    field("song_id", pa.string()),
    field("score", pa.float32(), "ratio"),
    field("coverage", pa.float32(), "ratio"),
    field(
        "lines",
        pa.list_(
            pa.struct(
                [
                    *_SPAN,
                    field("text", pa.string()),
                    field("score", pa.float32(), "ratio"),
                    field("verdict", pa.string(), "canonical, heard, missing or extra"),
                    field("library_line", pa.int32()),
                    field("library_text", pa.string()),
                    field("words", pa.list_(pa.struct([*_SPAN, field("text", pa.string())]))),
                ]
            )
        ),
    ),
    field("alternatives", pa.list_(pa.string())),
)

RHYTHM = stage_struct(
    field("bpm", pa.float64(), "beats/min"),
    field("confidence", pa.float32(), "ratio"),
    field("beats_s", pa.list_(pa.float64()), "s"),
    field("downbeats_s", pa.list_(pa.float64()), "s"),
    field("time_signature", pa.int32(), "beats/bar"),
    field("octave", pa.string()),  # what was done to the extractor's tempo: "as_is", "halved" or "doubled"
    field("octave_confidence", pa.float32(), "ratio"),
)

KEY = stage_struct(
    field("tonic", pa.string()),
    field("mode", pa.string()),
    field("strength", pa.float32(), "ratio"),
    field("second_tonic", pa.string()),
    field("second_mode", pa.string()),
)

TAGS = stage_struct(field("names", pa.list_(pa.string())), field("scores", pa.list_(pa.float32()), "probability"))

SECTIONS = stage_struct(
    field("items", pa.list_(pa.struct([*_SPAN, field("label", pa.string())]))),
    field("bpm", pa.float64(), "BPM as the model of the sections has it; null where it has none"),
)

CAPTION = stage_struct(
    *(field(variant, pa.string()) for variant in ("simplified", "expanded", "descriptive", "synonyms", "use_cases")),
    field(
        "analysis",
        pa.struct(
            [
                field("genre", pa.string()),
                field("instruments", pa.list_(pa.string())),
                field("tempo", pa.string()),
                field("mood", pa.string()),
            ]
        ),
    ),
    field("lyrical_rap_check", pa.string()),
    field("source", pa.string()),
    field("failure", pa.string()),  # why a captioning model's answer could not be used
)

LYRIC_TOKENS = stage_struct(
    field("ids", pa.list_(pa.int32())),
    field("text", pa.string()),
    field("vocabulary", pa.string()),
    field("variant", pa.string()),
)

SPEAKER = stage_struct(field("embedding", pa.list_(pa.float32())))

LATENT_CHANNELS, LATENT_BINS = 8, 16
LATENT_FRAME = LATENT_CHANNELS, LATENT_BINS
# The codec's latents: float16, little-endian, time-major [frames, *LATENT_FRAME].
LATENTS = stage_struct(field("frames", pa.int32()), field("data", pa.large_binary()))

# One SSL encoder's states: int8 directions [frames, dim], time-major, and the float16 length of each frame.
SSL_STATES = pa.struct(
    [
        field("frames", pa.int32()),
        field("dim", pa.int32()),
        field("rate_hz", pa.float64(), "Hz"),
        field("scales", pa.large_binary()),
        field("data", pa.large_binary()),
    ]
)


def ssl_struct(*encoders: str) -> pa.StructType:
    """The `ssl` column: one field per encoder."""
    return stage_struct(*(field(encoder, SSL_STATES) for encoder in encoders))


# One item per caption variant; data is float16 [tokens, dim], unpadded.
TEXT_EMBEDDING = pa.list_(
    pa.struct(
        [
            field("variant", pa.string()),
            field("tokens", pa.int32()),
            field("dim", pa.int32()),
            field("data", pa.large_binary()),
            field("model", pa.string()),
        ]
    )
)

# An excerpt of the song to listen to: a complete audio file, such as Ogg Opus.
PREVIEW = stage_struct(
    field("codec", pa.string()),
    field("start_s", pa.float64(), "s"),
    field("duration_s", pa.float64(), "s"),
    field("data", pa.large_binary()),
)

VERDICT = pa.struct(
    [
        field("status", pa.string()),  # kept, filtered, failed or pending
        field("stage", pa.string()),
        field("reason", pa.string()),
        field("message", pa.string()),
        field("attempts", pa.int32()),
    ]
)
# Seconds that each stage took; carried along with a row, then stored in the commit record and the scan table.
TIMING = pa.list_(pa.struct([("stage", pa.string()), ("seconds", pa.float64())]))
FLAGS = pa.list_(pa.string())  # remarks that do not reject a row
