"""The ACE-Step v1 networks, with the released checkpoints' names and shapes. Imports nothing else of songmill."""

from stages.nets.codec.codec import MusicDCAE
from stages.nets.codec.griffin_lim import GriffinLim
from stages.nets.codec.vocoder import ADaMoSHiFiGANV1
from training.model.transformer import ACEStepTransformer2DModel

__all__ = ["ACEStepTransformer2DModel", "ADaMoSHiFiGANV1", "GriffinLim", "MusicDCAE"]
