"""What a batch of songs is generated from."""

from dataclasses import dataclass

import torch

from training.sampling.errors import SamplingError


@dataclass(frozen=True)
class Conditions:
    """A batch of encoded prompts, speakers and lyrics, padded to the longest and masked.

    Attributes:
        text: [B, L, dim] states of the text encoder.
        text_mask: [B, L], nonzero where there is a token.
        speaker: [B, speaker dim]; zeros where there is none.
        lyrics: int64 [B, Ll] token ids.
        lyric_mask: [B, Ll], nonzero where there is a token.
        text_null: [B, L, dim] states of the weakened text encoder, where guidance takes them for the unconditional
            pass (entropy-rectifying guidance on the tag); None where it takes zeros.

    Raises:
        SamplingError: shapes do not belong together.
    """

    text: torch.Tensor
    text_mask: torch.Tensor
    speaker: torch.Tensor
    lyrics: torch.Tensor
    lyric_mask: torch.Tensor
    text_null: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Compare every shape with the ones it must agree with."""
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
        """All tensors on a device, states and speakers in a dtype; ids stay int64 and masks what they are."""
        return Conditions(
            text=self.text.to(device, dtype),
            text_mask=self.text_mask.to(device),
            speaker=self.speaker.to(device, dtype),
            lyrics=self.lyrics.to(device),
            lyric_mask=self.lyric_mask.to(device),
            text_null=None if self.text_null is None else self.text_null.to(device, dtype),
        )

    def repeat(self, count: int) -> "Conditions":
        """The batch `count` times over, one after another: item i of repeat r is at `r * batch_size + i`."""
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
