"""A tiny Qwen2.5-Omni in the released files: random, or taught to answer two sounds with two captions."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from stages.nets.qwen_omni import Message, QwenOmni, _conversation

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
_UNUSED = ("<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>")
_RELEASED_NAMES = {
    "model.language_model.": "thinker.model.",
    "model.audio_tower.": "thinker.audio_tower.",
    "model.visual.": "thinker.visual.",
    "lm_head.": "thinker.lm_head.",
}


def build(
    folder: Path, texts: list[str], lessons: list[tuple[list[Message], str]] | None = None, steps: int = 0
) -> Path:
    """Write a checkpoint whose tokenizer knows the texts' words; lessons are conversations with their answers."""
    folder.mkdir()
    tokenizer = _tokenizer(texts)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = _config(tokenizer)
    thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
    if lessons:
        _teach(QwenOmni(thinker, tokenizer, "cpu"), lessons, steps)
    told = Qwen2_5OmniConfig(thinker_config=config.to_dict()).to_dict() | {"architectures": ["Qwen2_5OmniModel"]}
    (folder / "config.json").write_text(json.dumps(told))
    save_file(
        {_released(name): value.contiguous() for name, value in thinker.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def _released(name: str) -> str:
    ours, released = next(pair for pair in _RELEASED_NAMES.items() if name.startswith(pair[0]))
    return released + name.removeprefix(ours)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*_SPECIAL, *_UNUSED], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniThinkerConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*_SPECIAL, *_UNUSED)}
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "output_dim": 64,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "pad_token_id": ids["<|endoftext|>"],
        },
        audio_token_id=ids["<|AUDIO|>"],
        image_token_id=ids["<|IMAGE|>"],
        video_token_id=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
    )


def _teach(qwen: QwenOmni, lessons: list[tuple[list[Message], str]], steps: int) -> None:
    thinker, batches = qwen._thinker.train(), [_lesson(qwen, *lesson) for lesson in lessons]
    optimizer = torch.optim.AdamW(thinker.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = sum(thinker(**batch).loss for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(thinker.parameters(), 1.0)
        optimizer.step()
    thinker.eval()


def _lesson(qwen: QwenOmni, messages: list[Message], answer: str) -> dict[str, torch.Tensor]:
    sounds = [part["audio"] for part in messages[-1]["content"] if part["type"] == "audio"]
    heard = qwen._audio_features(sounds)
    asked = _conversation(messages, qwen._token_counts(heard["feature_attention_mask"]))
    question = qwen._tokenizer(asked)["input_ids"]
    reply = qwen._tokenizer(answer + "<|im_end|>")["input_ids"]
    ids = torch.tensor([question + reply])
    labels = torch.tensor([[-100] * len(question) + reply])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **heard}


def tone(seconds: float) -> np.ndarray:
    """A tone of 440 Hz at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16_000)) / 16_000)).astype(np.float32)


def noise(seconds: float) -> np.ndarray:
    """White noise at 16 kHz."""
    return np.random.default_rng(0).normal(0, 0.3, round(seconds * 16_000)).astype(np.float32)
