"""A run's metrics as TensorBoard event files."""

from collections.abc import Mapping

import numpy as np

from training.run.run_folder import RunFolder

_AXES = ("step", "epoch")


class TensorBoard:
    """Writes event files. Events that an earlier process wrote after the last checkpoint are purged.

    Args:
        folder: the run's folder; the files go to `tensorboard/` in it.
    """

    def __init__(self, folder: RunFolder) -> None:
        from tensorboardX import SummaryWriter  # imported here: it takes a while

        self._writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=max(folder.steps(), default=0) + 1)

    def __call__(self, figures: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        for name, value in figures.items():
            if name not in _AXES:
                self._writer.add_scalar(name, value, int(figures["step"]))
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Add images of a step: name -> uint8 [height, width]."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HW")
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
