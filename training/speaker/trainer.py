"""Training the speaker encoder on batches of singers, validated on held-out singers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from stages.nets.omni_scale import SpeakerEncoder
from training.run.base_trainer import BaseTrainer, Figures
from training.run.optimizer import build_optimizer, set_learning_rate
from training.run.run_folder import RunProblem
from training.speaker.config import SpeakerConfig
from training.speaker.objective import SpeakerClassifier, SpeakerLosses, speaker_losses, supervised_contrastive
from training.speaker.segment_store import SegmentStore
from training.speaker.verification import area_under_curve, equal_error_rate
from training.speaker.voices import VoiceBatch, Voices

SEGMENTS = "segments"  # subfolder of the run


class SpeakerTrainer(BaseTrainer):
    """Trains the speaker encoder in one process, on voices from the run's own `segments/`.

    Args:
        config: settings of the run.
        folder: the run's folder, with `segments/`; if it holds a checkpoint, training resumes from it.
        device: device to compute on.
        report: called with the metrics of each logged step.

    Raises:
        RunProblem: the folder holds a run with other settings, or its voices are missing, changed or too few.
    """

    def __init__(
        self,
        config: SpeakerConfig,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        report: Callable[[Figures], None] | None = None,
    ) -> None:
        super().__init__(config, folder, device=device, report=report)
        self.config = config
        self._device = torch.device(device)
        torch.manual_seed(config.seed)
        self.encoder = SpeakerEncoder(**config.model)
        self.voices = Voices(SegmentStore(folder / SEGMENTS), config.data, frame_hz(self.encoder))
        self._require_same_voices()
        dim = self.encoder.config["embedding_dim"]
        self.model = SpeakerClassifier(self.encoder, dim, len(self.voices.singers)).to(self._device).train()
        self.optimizer = build_optimizer(self.model.parameters(), config.optimizer)
        self.resume()

    def take_step(self) -> dict[str, float]:
        """One optimizer step on one batch."""
        started = time.perf_counter()
        batch = self.voices.batch(self.config.seed, self.step)
        waited = time.perf_counter() - started
        set_learning_rate(self.optimizer, self.step, self.config.steps, self.config.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        self.require_finite(losses.total, batch.track_ids)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        taken = time.perf_counter() - started
        return {
            "loss": losses.total.item(),
            "classification": losses.classification.item(),
            "verification": losses.verification.item(),
            "accuracy": losses.accuracy.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm.item(),
            "segments_per_s": len(batch.track_ids) / taken,
            "data_wait_share": waited / taken,
        }

    def validated(self) -> dict[str, float]:
        """Contrastive loss, equal error rate and area under the curve over pairs of segments of held-out singers.

        Two segments of one song have more in common than the voice. If singers have several songs,
        `validation/eer_across_songs` leaves such pairs out.
        """
        if not self.voices.held_out:
            return {}
        batches = self.voices.validation()
        embeddings = self._embed(batches)
        singers = torch.cat([batch.singers for batch in batches])
        loss = supervised_contrastive(embeddings, singers, self.config.objective.temperature)
        tracks = np.array([batch.track_ids[0] for batch in batches])
        return {"validation/loss": loss.item(), **pair_figures(embeddings.numpy(), singers.numpy(), tracks)}

    def state(self) -> dict[str, Any]:
        """Weights of the encoder and of the classes, and optimizer state."""
        weights, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": optimizer}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore weights and optimizer state."""
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def progress(self) -> dict[str, Any]:
        """The encoder's config, and the fingerprint of the voices."""
        return {"model": encoder_config(self.encoder), "voices": self.voices.fingerprint()}

    def _require_same_voices(self) -> None:
        steps = self.folder.steps()
        if steps and self.folder.progress(steps[-1])["voices"] != self.voices.fingerprint():
            raise RunProblem(
                f"the voices in {self.folder.root / SEGMENTS} are not those the run was stopped with: put them back, "
                "or start again in another --out"
            )

    def _losses(self, batch: VoiceBatch) -> SpeakerLosses:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            embeddings, cosines = self.model(batch.log_mel.to(self._device))
        return speaker_losses(embeddings, cosines.float(), batch.singers.to(self._device), self.config.objective)

    @torch.no_grad()
    def _embed(self, batches: list[VoiceBatch]) -> torch.Tensor:
        self.model.eval()
        embeddings = [self.encoder(batch.log_mel.to(self._device)).cpu() for batch in batches]
        self.model.train()
        return torch.cat(embeddings)


def pair_figures(embeddings: np.ndarray, singers: np.ndarray, tracks: np.ndarray) -> dict[str, float]:
    """Equal error rate and area under the curve over all pairs, and over pairs from different songs.

    Args:
        embeddings: [N, dim], unit length.
        singers: [N], singer of each.
        tracks: [N], song of each.
    """
    first, second = np.triu_indices(len(singers), k=1)
    scores = np.einsum("nd,nd->n", embeddings[first], embeddings[second])
    same, across = singers[first] == singers[second], tracks[first] != tracks[second]
    figures = {
        "validation/eer": equal_error_rate(scores, same),
        "validation/auc": area_under_curve(scores, same),
    }
    if (same & across).any() and not across.all():
        figures["validation/eer_across_songs"] = equal_error_rate(scores[across], same[across])
    return figures


def frame_hz(encoder: SpeakerEncoder) -> float:
    """Frame rate of an encoder's log-mel bands."""
    return float(encoder.config["sampling_rate"] / encoder.config["hop_length"])


def encoder_config(encoder: SpeakerEncoder) -> dict[str, Any]:
    """The encoder's config as JSON values."""
    return {name: value for name, value in encoder.config.items() if not name.startswith("_")}
