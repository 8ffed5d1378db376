"""The conditions of a batch of songs."""

from dataclasses import dataclass

import torch

from training.sampling.errors import SamplingError


@dataclass(frozen=True)
class Conditions:
    """A batch of encoded prompts, speakers and lyrics, padded to the longest and masked.

    Attributes:
        text: [B, L, dim] states of the text encoder.
        text_mask: [B, L], 0 on padding.
        speaker: [B, speaker dim]; zeros for no particular voice.
        lyrics: int64 [B, Ll] token ids.
        lyric_mask: [B, Ll], 0 on padding.
        text_null: [B, L, dim] states of the weakened text encoder, for the unconditional branch of entropy-rectifying
            guidance on the prompt; None uses zeros there.

    Raises:
        SamplingError: shapes or dtypes do not fit together.
    """

    text: torch.Tensor
    text_mask: torch.Tensor
    speaker: torch.Tensor
    lyrics: torch.Tensor
    lyric_mask: torch.Tensor
    text_null: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        for name, tensor, ndim in (("text", self.text, 3), ("speaker", self.speaker, 2), ("lyrics", self.lyrics, 2)):
            if tensor.ndim != ndim or 0 in tensor.shape:
                raise SamplingError(f"{name} must have {ndim} non-empty dimensions, not shape {list(tensor.shape)}")
        if self.lyrics.dtype != torch.int64:
            raise SamplingError(f"lyrics must be int64 token ids, not {self.lyrics.dtype}")
        _require_shape("text_mask", self.text_mask, self.text.shape[:2], "text")
        _require_shape("lyric_mask", self.lyric_mask, self.lyrics.shape, "lyrics")
        if self.text_null is not None:
            _require_shape("text_null", self.text_null, self.text.shape, "text")
        for name, tensor in (("speakers", self.speaker), ("lyrics", self.lyrics)):
            if len(tensor) != self.batch_size:
                raise SamplingError(f"{len(tensor)} {name} for {self.batch_size} prompts: give one for each")

    @property
    def batch_size(self) -> int:
        """Number of songs."""
        return len(self.text)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Conditions":
        """The conditions on a device, with states and speakers in a dtype; ids and masks keep theirs."""
        return Conditions(
            text=self.text.to(device, dtype),
            text_mask=self.text_mask.to(device),
            speaker=self.speaker.to(device, dtype),
            lyrics=self.lyrics.to(device),
            lyric_mask=self.lyric_mask.to(device),
            text_null=None if self.text_null is None else self.text_null.to(device, dtype),
        )

    def repeat(self, count: int) -> "Conditions":
        """The batch repeated `count` times: item i of repetition r is at `r * batch_size + i`."""
        return Conditions(
            text=self.text.repeat(count, 1, 1),
            text_mask=self.text_mask.repeat(count, 1),
            speaker=self.speaker.repeat(count, 1),
            lyrics=self.lyrics.repeat(count, 1),
            lyric_mask=self.lyric_mask.repeat(count, 1),
            text_null=None if self.text_null is None else self.text_null.repeat(count, 1, 1),
        )


def _require_shape(name: str, tensor: torch.Tensor, shape: torch.Size, of: str) -> None:
    if tensor.shape != shape:
        raise SamplingError(f"{name} must have shape {list(shape)} to go with {of}, not {list(tensor.shape)}")
