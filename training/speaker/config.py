"""Settings of a run of `songmill train speaker`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.storage.location import Place
from training.run.base_trainer import BaseTrainConfig
from training.run.optimizer import OptimizerConfig

_SHORTEST_S = 0.2  # the least that the encoder can process


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VoicesConfig(_Config):
    """Which voices to use, and how they are batched and augmented.

    Attributes:
        datasets: folders or URLs of buckets that `songmill curate` wrote.
        where: SQL condition on the shards' columns.
        label: column that names the singer. A song without one counts as a singer of its own.
        singers: singers per batch.
        segments: segments per singer in a batch, from different songs if possible.
        crop_s: shortest and longest crop of a segment, in seconds; all crops of a batch are equally long.
        tilt_db: largest random tilt of the spectrum, top against bottom, so that singers are not told apart by their
            microphones.
        masked_share: longest run of frames, and of bands, to mask in a crop (SpecAugment, Park et al. 2019).
        validation_share: share of the singers to hold out.
        validation_segments: most segments of each held-out singer.
    """

    datasets: tuple[Place, ...] = Field(min_length=1)
    where: str | None = None
    label: str = "artist"
    singers: int = Field(16, ge=2)
    segments: int = Field(4, ge=2)
    crop_s: tuple[float, float] = (3.0, 10.0)
    tilt_db: float = Field(3.0, ge=0)
    masked_share: float = Field(0.1, ge=0, lt=1)
    validation_share: float = Field(0.1, ge=0, lt=1)
    validation_segments: int = Field(8, ge=2)

    @field_validator("crop_s")
    @classmethod
    def _rising(cls, crop_s: tuple[float, float]) -> tuple[float, float]:
        if not _SHORTEST_S <= crop_s[0] <= crop_s[1]:
            raise ValueError(f"the shortest comes first, at least {_SHORTEST_S}")
        return crop_s


class SpeakerObjectiveConfig(_Config):
    """The two losses, see `training.speaker.objective`.

    Attributes:
        classification: weight of the additive-margin softmax over the singers.
        verification: weight of the supervised contrastive loss within a batch.
        margin: subtracted from the cosine to the right class.
        scale: multiplies the cosines to the classes.
        temperature: divides the cosines between embeddings.
    """

    classification: float = Field(1.0, ge=0)
    verification: float = Field(1.0, ge=0)
    margin: float = Field(0.2, ge=0)
    scale: float = Field(30.0, gt=0)
    temperature: float = Field(0.1, gt=0)


class SpeakerConfig(BaseTrainConfig):
    """A run of `songmill train speaker`.

    Attributes:
        kind: kind of the run, as stored in its `config.json`.
        data: voices.
        model: config of the encoder; missing keys take OSNet's values.
        objective: losses.
        optimizer: AdamW and its learning rate.
        precision: dtype of the forward pass.
    """

    kind: Literal["speaker"] = "speaker"
    data: VoicesConfig
    model: dict[str, Any] = Field(default_factory=dict)
    objective: SpeakerObjectiveConfig = SpeakerObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=1e-3, betas=(0.9, 0.999), warmup_steps=500, decay="cosine", clip=5.0
    )
    precision: Literal["float32", "bfloat16"] = "float32"
    steps: int = Field(20_000, ge=1)
    validate_every: int = Field(500, ge=0)


# Configs of a new encoder, by `--size`.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"channels": [16, 32, 48, 64], "blocks": [1, 1, 1]},
    "small": {"channels": [32, 128, 192, 256], "blocks": [1, 1, 1]},
    "full": {},
}
