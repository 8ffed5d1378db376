"""Training the music autoencoder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from stages.nets.codec.codec import AUTOENCODER
from training.autoencoder.config import AutoencoderTrainConfig, Moment, PhaseName
from training.autoencoder.crops import CropOrder, CropReader, read_crops, spread, whole_frames
from training.autoencoder.discriminator import PatchDiscriminator
from training.autoencoder.model import SpectrogramAutoencoder, StereoMel, build_model
from training.autoencoder.objective import AutoencoderLosses, PatchGan, reconstruction_losses
from training.autoencoder.phases import set_phase
from training.autoencoder.validation import HeldOut
from training.data.recordings import RATE_HZ, AudioSource, held_out
from training.dit.memory_estimate import PeakMemory
from training.run.base_trainer import BaseTrainer, Figures
from training.run.optimizer import build_optimizer, set_learning_rate
from training.run.run_folder import RunProblem

Pictures = Mapping[str, np.ndarray]

_LINEAR_START_CROPS, _LINEAR_START_S = 64, 3.0  # crops for a linear start, and their length in seconds
_GAN_BETAS = (0.5, 0.9)  # little momentum, since the autoencoder changes too


class AutoencoderTrainer(BaseTrainer):
    """Trains the autoencoder in one process: reconstruction of crops, and a GAN in the last phase.

    Args:
        config: settings of the run.
        audio: recordings to draw crops from.
        folder: the run's folder; if it holds a checkpoint, training resumes from it.
        device: device to compute on.
        report: called with the metrics of each logged step.
        show: called after each validation with the step and images of reconstructions.

    Raises:
        RunProblem: the folder holds a run with other settings, or all songs are held out.
        UnreadableAudio: a held-out song cannot be decoded.
        CheckpointProblem: the checkpoint to start from is damaged.
        NoSuchModel: the sizes do not make an autoencoder for the codec.
    """

    def __init__(
        self,
        config: AutoencoderTrainConfig,
        audio: AudioSource,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        report: Callable[[Figures], None] | None = None,
        show: Callable[[int, Pictures], None] | None = None,
    ) -> None:
        super().__init__(config, folder, device=device, report=report)
        self.config = config
        self._audio = audio
        self._show = show
        self._memory = PeakMemory(device)
        self._device = torch.device(device)
        self._phase: PhaseName | None = None
        self._mel = StereoMel()
        out = held_out(audio.recordings, config.data.validation_share)
        self._songs = np.flatnonzero(~out).tolist()
        if not self._songs:
            raise RunProblem("all songs are held out: lower data.validation_share")
        self._held_out = HeldOut(audio, np.flatnonzero(out).tolist(), config.data, self._mel)
        torch.manual_seed(config.seed)
        self.model = self._initial_model().to(self._device)
        self.gan = PatchGan(_discriminator(config).to(self._device), config.adversarial)
        self._optimizer = build_optimizer(self.model.parameters(), config.full.optimizer)
        self._discriminator_optimizer = _discriminator_optimizer(self.gan.discriminator, config)
        self.state()  # creates optimizer state for all weights, whether this phase trains them or not
        self._mel.to(self._device)
        self.resume()

    def take_step(self) -> dict[str, float]:
        """One optimizer step on a batch of crops, and in `head` one of the discriminator."""
        started = time.perf_counter()
        moment = self.config.moment(self.step)
        self._enter(moment)
        crops = self._read_batch(moment.step)
        waited = time.perf_counter() - started
        music = self._mel(crops.waveforms.to(self._device))
        with self._autocast():
            made = self.model(music).float()
            losses = reconstruction_losses(made, music, self.config.reconstruction)
            adversary = moment.name == "head" and self.config.adversarial.weight > 0
            if adversary:
                losses = self.gan.against(made, losses, self.model.last_layer)
        self.require_finite(losses.total, crops.track_ids)
        norm = self._descend(losses)
        figures = {"loss": losses.total, **losses.parts, "gradient_norm": norm}
        if adversary:
            figures["discriminator"] = self._discriminate(made, music)
        measured = {name: float(value.detach()) for name, value in figures.items()}
        taken = time.perf_counter() - started
        count, _, samples = crops.waveforms.shape
        return measured | {
            "lr": self._optimizer.param_groups[0]["lr"],
            "excerpts_per_s": count / taken,
            "audio_s_per_s": count * samples / RATE_HZ / taken,
            "data_wait_share": waited / taken,
            "peak_memory_gb": self._memory.peak / 1e9,
        }

    def validated(self) -> dict[str, float]:
        """Reconstruction errors of the held-out crops; also passes images of them to `show`."""
        training = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        figures = self._held_out.figures(self.model, self._device)
        if self._show and figures:
            self._show(self.step, self._held_out.pictures(self.model, self._device))
        for module, was in training:
            module.training = was
        return figures

    def state(self) -> dict[str, Any]:
        """Weights and optimizer state of the autoencoder and of the discriminator."""
        model, optimizer = get_state_dict(self.model, self._optimizer)
        discriminator, its_optimizer = get_state_dict(self.gan.discriminator, self._discriminator_optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "discriminator": discriminator,
            "discriminator_optimizer": its_optimizer,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore weights and optimizer state."""
        for name, module, optimizer in (
            ("", self.model, self._optimizer),
            ("discriminator", self.gan.discriminator, self._discriminator_optimizer),
        ):
            set_state_dict(
                module,
                optimizer,
                model_state_dict=state[name or "model"],
                optim_state_dict=state[f"{name}_optimizer".lstrip("_")],
            )

    def progress(self) -> dict[str, Any]:
        """The model's config, so that the run can be exported without its dataset."""
        config = self.model.autoencoder.config
        return {"model": {name: value for name, value in config.items() if not name.startswith("_")}}

    def _initial_model(self) -> SpectrogramAutoencoder:
        """The initial model. When a run is resumed, its weights are replaced."""
        model = build_model(self.config.model, self.config.checkpoint)
        if self.config.linear_start and not self.folder.steps():
            length = whole_frames(_LINEAR_START_S)
            samples = [self._audio.recordings[song].samples for song in self._songs]
            places = spread(self._songs, samples, length, _LINEAR_START_CROPS)
            model.start_linear(self._mel(read_crops(self._audio, places, length).waveforms))
        return model

    def _enter(self, moment: Moment) -> None:
        """Switch to the step's phase if it has changed, and set the learning rate."""
        name, phase, step = moment
        if name != self._phase:
            self._phase = name
            set_phase(self.model, name)
            self._read_batch = self._reader(moment)
        set_learning_rate(self._optimizer, step, phase.steps, phase.optimizer)
        for group in self._optimizer.param_groups:
            group["betas"], group["weight_decay"] = phase.optimizer.betas, phase.optimizer.weight_decay

    def _reader(self, moment: Moment) -> CropReader:
        length = whole_frames(moment.phase.excerpt_s)
        order = CropOrder(
            self._songs,
            [self._audio.recordings[song].samples for song in self._songs],
            length=length,
            batch_size=moment.phase.batch_size,
            per_visit=self.config.data.excerpts_per_visit,
            seed=self.config.seed,
        )
        return CropReader(self._audio, order, length)

    def _descend(self, losses: AutoencoderLosses) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        clip = self.config.moment(self.step).phase.optimizer.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self._optimizer.step()
        return norm

    def _discriminate(self, made: Tensor, music: Tensor) -> Tensor:
        self._discriminator_optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.gan.discriminate(made, music)
        loss.backward()
        self._discriminator_optimizer.step()
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _discriminator(config: AutoencoderTrainConfig) -> PatchDiscriminator:
    adversarial = config.adversarial
    return PatchDiscriminator(AUTOENCODER["in_channels"], adversarial.channels, adversarial.layers)


def _discriminator_optimizer(discriminator: PatchDiscriminator, config: AutoencoderTrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(discriminator.parameters(), lr=config.adversarial.lr, betas=_GAN_BETAS, weight_decay=0.0)
