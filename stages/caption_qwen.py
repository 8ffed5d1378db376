"""Captions by Qwen2.5-Omni, the model that ACE-Step's report names, run in-process."""

from collections.abc import Mapping

import numpy as np

from stages.base import Weights
from stages.caption_model import ModelCaption, ModelParams
from stages.captioning.prompt import Message

MODEL = "qwen2-5-omni-7b"


class CaptionQwen(ModelCaption):
    """Captions by Qwen2.5-Omni's thinker, see `ModelCaption`. One song at a time; a server batches better."""

    Params = ModelParams

    @property
    def models(self) -> tuple[str, ...]:
        """The checkpoint."""
        return (MODEL,)

    @property
    def captioner(self) -> str:
        """The entry of the model store."""
        return str(self.weights[MODEL])

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load the thinker."""
        super().setup(weights)
        from stages.nets.qwen_omni import QwenOmni

        self._qwen = QwenOmni.load(weights[MODEL].path, self.device)

    def sound(self, audio: np.ndarray) -> Message:
        """The samples as they are."""
        return {"type": "audio", "audio": audio}

    def answer(self, messages: list[Message]) -> str:
        """Ask the thinker."""
        return self._qwen.answer(messages, self.params.max_tokens, self.params.temperature)
