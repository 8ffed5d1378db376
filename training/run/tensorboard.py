"""The figures of a run as TensorBoard shows them."""

from collections.abc import Mapping

import numpy as np

from training.run.run_folder import RunFolder

_AXES = ("step", "epoch")


class TensorBoard:
    """Writes event files. What an earlier process wrote beyond the last checkpoint is hidden.

    Args:
        folder: of the run, which gets the files in `tensorboard/`.
    """

    def __init__(self, folder: RunFolder) -> None:
        from tensorboardX import SummaryWriter  # here, for it takes a while to import

        self._writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=max(folder.steps(), default=0) + 1)

    def __call__(self, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        for name, value in figures.items():
            if name not in _AXES:
                self._writer.add_scalar(name, value, int(figures["step"]))
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Add pictures of a step: by name, uint8 [height, width]."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HW")
        self._writer.flush()

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.close()
