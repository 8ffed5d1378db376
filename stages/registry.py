"""Which class implements a stage's engine. A new engine takes one file and one line here."""

from importlib import import_module

from stages.base import Stage

# stage -> engine -> "module:Class"; the first engine is the default.
ENGINES: dict[str, dict[str, str]] = {
    "decode": {"pyav": "stages.decode:Decode"},
    "quality": {"songmill": "stages.quality:Quality"},
    "fingerprint": {"songmill": "stages.fingerprint:Fingerprint"},
    "aesthetics": {"audiobox": "stages.aesthetics:Aesthetics"},
    "events": {"yamnet": "stages.events:Events"},
    "vocals": {"spleeter": "stages.vocals:Vocals", "demucs": "stages.vocals_demucs:VocalsDemucs"},
    "transcript": {
        "faster-whisper": "stages.transcript:Transcript",
        "openai-whisper": "stages.transcript_openai:TranscriptOpenai",
    },
    "phonemes": {"espeak": "stages.phonemes:Phonemes"},
    "lyrics": {"minhash": "stages.lyrics:Lyrics"},
    "rhythm": {"essentia": "stages.rhythm:Rhythm", "beat-this": "stages.rhythm_beat_this:RhythmBeatThis"},
    "key": {"essentia": "stages.key:Key"},
    "tags": {"musicnn": "stages.tags:Tags", "discogs-effnet": "stages.tags_discogs:TagsDiscogs"},
    "sections": {
        "self-similarity": "stages.sections:Sections",
        "all-in-one": "stages.sections_all_in_one:SectionsAllInOne",
    },
    "caption": {
        "template": "stages.caption:Caption",
        "endpoint": "stages.caption_endpoint:CaptionEndpoint",
        "qwen-omni": "stages.caption_qwen:CaptionQwen",
    },
    "lyric_tokens": {"bpe": "stages.lyric_tokens:LyricTokens"},
    "speaker": {"resemblyzer": "stages.speaker:Speaker", "songmill": "stages.speaker_songmill:SpeakerSongmill"},
    "text_embedding": {
        "e5": "stages.text_embedding:TextEmbedding",
        "umt5": "stages.text_embedding_umt5:TextEmbeddingUmt5",
    },
    "latents": {"dcae": "stages.latents:Latents"},
    "preview": {"opus": "stages.preview:Preview"},
    "ssl": {"whisper-encoder": "stages.ssl:Ssl", "mert-mhubert": "stages.ssl_hubert:SslHubert"},
}

# What the fingerprints of datasets call an engine. The name must survive when its class moves: engines from before 2027
# keep the module path that they had then; later ones, which are not in this table, are called "stage/engine".
_RECORDED_AS = {
    "decode/pyav": "stages.decode:Decode",
    "quality/songmill": "stages.quality:Quality",
    "fingerprint/songmill": "stages.fingerprint:Fingerprint",
    "aesthetics/audiobox": "stages.aesthetics:Aesthetics",
    "events/yamnet": "stages.events:Events",
    "vocals/spleeter": "stages.vocals:Vocals",
    "vocals/demucs": "stages.vocals_demucs:VocalsDemucs",
    "transcript/faster-whisper": "stages.transcript:Transcript",
    "transcript/openai-whisper": "stages.transcript_openai:TranscriptOpenai",
    "phonemes/espeak": "stages.phonemes:Phonemes",
    "lyrics/minhash": "stages.lyrics:Lyrics",
    "rhythm/essentia": "stages.rhythm:Rhythm",
    "rhythm/beat-this": "stages.rhythm_beat_this:RhythmBeatThis",
    "key/essentia": "stages.key:Key",
    "tags/musicnn": "stages.tags:Tags",
    "tags/discogs-effnet": "stages.tags_discogs:TagsDiscogs",
    "sections/self-similarity": "stages.sections:Sections",
    "sections/all-in-one": "stages.sections_all_in_one:SectionsAllInOne",
    "caption/template": "stages.caption:Caption",
    "caption/endpoint": "stages.caption_endpoint:CaptionEndpoint",
    "caption/qwen-omni": "stages.caption_qwen:CaptionQwen",
    "lyric_tokens/bpe": "stages.lyric_tokens:LyricTokens",
    "speaker/resemblyzer": "stages.speaker:Speaker",
    "speaker/songmill": "stages.speaker_songmill:SpeakerSongmill",
    "text_embedding/e5": "stages.text_embedding:TextEmbedding",
    "text_embedding/umt5": "stages.text_embedding_umt5:TextEmbeddingUmt5",
    "latents/dcae": "stages.latents:Latents",
    "preview/opus": "stages.preview:Preview",
    "ssl/whisper-encoder": "stages.ssl:Ssl",
    "ssl/mert-mhubert": "stages.ssl_hubert:SslHubert",
}


def stage_class(name: str, engine: str | None = None) -> type[Stage]:
    """The class of a stage, by its name and engine; a user's own stage has `package.module:Class` as its engine.

    Raises:
        KeyError: no such stage or engine; the message lists the available ones.
        TypeError: `package.module:Class` is not a `Stage`.
    """
    if engine and ":" in engine:
        return _load(engine)
    if name not in ENGINES:
        raise KeyError(f"no stage named {name!r}; there are {', '.join(ENGINES)}")
    engines = ENGINES[name]
    chosen = engine or default_engine(name)
    if chosen not in engines:
        raise KeyError(f"stage {name!r} has no engine {chosen!r}; it has {', '.join(engines)}")
    return _load(engines[chosen])


def default_engine(name: str) -> str:
    """The engine used where the configuration names none."""
    return next(iter(ENGINES[name]))


def recorded_name(kind: type[Stage]) -> str:
    """What fingerprints call a stage's class: a name that stays the same when its file moves.

    A user's own class, which is not in the registry, goes by its location, `package.module:Class`.
    """
    place = f"{kind.__module__}:{kind.__qualname__}"
    for name, engines in ENGINES.items():
        for engine, target in engines.items():
            if target == place:
                return _RECORDED_AS.get(f"{name}/{engine}", f"{name}/{engine}")
    return place


def _load(target: str) -> type[Stage]:
    module, _, attribute = target.partition(":")
    loaded = getattr(import_module(module), attribute)
    if not (isinstance(loaded, type) and issubclass(loaded, Stage)):
        raise TypeError(f"{target} is not a Stage")
    return loaded
