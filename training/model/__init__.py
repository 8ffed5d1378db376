"""The ACE-Step v1 networks, with the released checkpoints' names and shapes. Imports nothing else of songmill."""

from training.model.codec import MusicDCAE
from training.model.griffin_lim import GriffinLim
from training.model.transformer import ACEStepTransformer2DModel
from training.model.vocoder import ADaMoSHiFiGANV1

__all__ = ["ACEStepTransformer2DModel", "ADaMoSHiFiGANV1", "GriffinLim", "MusicDCAE"]
