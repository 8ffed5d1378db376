"""The ACE-Step v1 networks, with the released checkpoints' names and shapes. Imports nothing else of songmill."""

from training.model.transformer import ACEStepTransformer2DModel

__all__ = ["ACEStepTransformer2DModel"]
