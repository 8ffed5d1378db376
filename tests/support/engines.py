"""Every engine of the stages that have several, ready to run: real weights where there are some, else random ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.store import ModelStore
from stages.base import Stage, Weights
from stages.registry import stage_class
from tests.support import random_checkpoints, tiny_checkpoint, tiny_qwen_omni

_SPEAKER_SIZE: dict[str, Any] = {"channels": [16, 32, 48, 64], "blocks": [1, 1, 1]}
_CAPTION_WORDS = "a slow rock song with drums"


def _on_disk(stage: str, engine: str, folder: Path, **params: Any) -> Stage:
    cls = stage_class(stage, engine)
    made = cls(cls.Params(**params))
    made.setup({name: Weights(name, folder, "0" * 64) for name in made.models})
    return made


def _from_store(stage: str, engine: str) -> Stage:
    made = stage_class(stage, engine)()
    store = ModelStore()
    made.setup({name: store.pull(name) for name in made.models})
    return made


def _demucs(folder: Path) -> Stage:
    (folder / "htdemucs.yaml").write_text("models: ['955717e8']\n")
    random_checkpoints.htdemucs(folder / "955717e8.safetensors", 0)
    return _on_disk("vocals", "demucs", folder)


def _openai_whisper(folder: Path) -> Stage:
    """Real weights take five seconds a song; tests/stages/test_transcript_openai.py has them."""
    random_checkpoints.openai_whisper(folder / "random.pt", 2)  # with this seed it says one line and ends
    unsure = {"min_avg_logprob": -100.0, "max_compression_ratio": 100.0}  # nor is it asked again and again
    return _on_disk("transcript", "openai-whisper", folder, beam_size=1, **unsure)


def _beat_this(folder: Path) -> Stage:
    random_checkpoints.beat_this(folder / "final0.ckpt", 0)
    return _on_disk("rhythm", "beat-this", folder)


def _all_in_one(folder: Path) -> Stage:
    random_checkpoints.all_in_one(folder / "harmonix-fold0-0vra4ys2.pth", 0)
    return _on_disk("sections", "all-in-one", folder)


def _qwen_omni(folder: Path) -> Stage:
    """Its random words are no captions: every row has the measured ones, and says why."""
    tiny_qwen_omni.build(folder / "qwen", [_CAPTION_WORDS])
    return _on_disk("caption", "qwen-omni", folder / "qwen", max_tokens=8)


def _speaker(folder: Path) -> Stage:
    import torch

    from stages.nets.omni_scale import SpeakerEncoder

    torch.manual_seed(0)
    SpeakerEncoder(**_SPEAKER_SIZE).save_pretrained(folder / "encoder")
    return _on_disk("speaker", "songmill", folder, encoder=folder / "encoder")


def _umt5(folder: Path) -> Stage:
    return _on_disk("text_embedding", "umt5", tiny_checkpoint.build(folder / "random") / "umt5-base")


def _hubert(folder: Path) -> Stage:
    random_checkpoints.hubert(folder / "mert", random_checkpoints.MERT, 0)
    random_checkpoints.hubert(folder / "mhubert", random_checkpoints.MHUBERT, 1)
    made = stage_class("ssl", "mert-mhubert")
    stage = made(made.Params(mert="mert", mhubert="mhubert"))
    stage.setup({name: Weights(name, folder / name, "0" * 64) for name in stage.models})
    return stage


def _discogs_effnet(folder: Path) -> Stage:
    random_checkpoints.discogs_effnet(folder, 0)
    made = stage_class("tags", "discogs-effnet")
    stage = made(made.Params(heads=("discogs-effnet-moodtheme",), min_score=0.0))
    stage.setup({name: Weights(name, folder / name, "0" * 64) for name in stage.models})
    return stage


_REAL = (
    *(
        ("vocals", "spleeter"),
        ("transcript", "faster-whisper"),
        ("rhythm", "essentia"),
        ("sections", "self-similarity"),
        ("tags", "musicnn"),
    ),
    *(("caption", "template"), ("speaker", "resemblyzer"), ("text_embedding", "e5"), ("ssl", "whisper-encoder")),
)

# (stage, engine) -> the stage, given a folder to write weights into.
ENGINES: Mapping[tuple[str, str], Callable[[Path], Stage]] = {
    **{name: lambda _folder, name=name: _from_store(*name) for name in _REAL},
    ("vocals", "demucs"): _demucs,
    ("transcript", "openai-whisper"): _openai_whisper,
    ("rhythm", "beat-this"): _beat_this,
    ("sections", "all-in-one"): _all_in_one,
    ("tags", "discogs-effnet"): _discogs_effnet,
    ("caption", "qwen-omni"): _qwen_omni,
    ("speaker", "songmill"): _speaker,
    ("text_embedding", "umt5"): _umt5,
    ("ssl", "mert-mhubert"): _hubert,
}
