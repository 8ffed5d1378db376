"""A checkpoint in the released layout: the released architectures at toy sizes, random weights."""

import json
import math
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from stages.lyric_tokens import load_vocabulary
from stages.text.bpe import BUILT_IN
from tests.support.golden_inputs import fill
from tests.support.places import GOLDEN
from training.checkpoints.released_layout import save_checkpoint
from training.model import ACEStepTransformer2DModel, ADaMoSHiFiGANV1, MusicDCAE

_CODEC = json.loads((GOLDEN / "codec.json").read_text())
_TEXT_DIM = 32
_SEED = 1


def build(folder: Path) -> Path:
    """Writes a checkpoint that generates noise, but everything in it has the released names, files and formats.

    Every call writes the same weights.
    """
    with TemporaryDirectory() as parts, torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        encoder = _text_encoder(Path(parts) / "umt5-base")
        save_checkpoint(folder, transformer=transformer(), codec=codec(), text_encoder=encoder, vocabulary=BUILT_IN)
    return folder


def build_audible(folder: Path) -> Path:
    """As `build`, but it can be heard: a codec of fresh weights gives the same waveform for all latents."""
    plain = build(folder / "plain")
    save_checkpoint(
        folder / "tiny",
        transformer=fill(transformer()),
        codec=fill(codec()),
        text_encoder=plain / "umt5-base",
        vocabulary=plain / "lyric_vocabulary.json",
    )
    return folder / "tiny"


def transformer(**changes: Any) -> ACEStepTransformer2DModel:
    """Two blocks of two heads, which read the built-in lyric vocabulary; `changes` are to its config."""
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "inner_dim": 32,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "speaker_embedding_dim": 16,
        "text_embedding_dim": _TEXT_DIM,
        "ssl_encoder_depths": (1, 1),
        "ssl_latent_dims": (12, 10),
        "lyric_encoder_vocab_size": load_vocabulary().get_vocab_size(),
        "lyric_hidden_size": 64,
    }
    return ACEStepTransformer2DModel(**(sizes | changes)).eval()


def codec() -> MusicDCAE:
    """The codec of the golden numbers, with other weights."""
    return MusicDCAE.from_parts(AutoencoderDC(**_CODEC["autoencoder"]), ADaMoSHiFiGANV1(**_CODEC["vocoder"])).eval()


def _text_encoder(folder: Path) -> Path:
    """A umT5 encoder of single ASCII characters, deep enough for guidance to weaken its blocks 8 and 9."""
    characters = [character for character in string.printable if not character.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -math.log(len(characters) + 1)) for piece in ("▁", *characters)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = UMT5Config(
        vocab_size=len(pieces), d_model=_TEXT_DIM, d_kv=8, d_ff=64, num_layers=10, num_decoder_layers=1, num_heads=4
    )
    UMT5EncoderModel(config).save_pretrained(folder)
    return folder
