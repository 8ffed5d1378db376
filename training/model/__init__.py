"""The ACE-Step v1 networks, with the released checkpoints' names and shapes; the codec is re-exported from `stages`."""

from stages.nets.codec import ADaMoSHiFiGANV1, GriffinLim, MusicDCAE
from training.model.transformer import ACEStepTransformer2DModel

__all__ = ["ACEStepTransformer2DModel", "ADaMoSHiFiGANV1", "GriffinLim", "MusicDCAE"]
