"""Which songs of which datasets to train on, and how they become batches."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.storage.location import Place

# The fields that, with the songs themselves, determine the batches.
ORDERING = ("seed", "batch_size", "max_frames", "max_frames_per_song", "bucket_width", "text_variants")


class DataConfig(BaseModel):
    """Everything about the data. Lengths are latent frames (10.77 a second).

    Attributes:
        datasets: folders or URLs of buckets that `songmill curate` wrote. A track in several of them counts once.
        where: SQL condition on the shards' columns, e.g. `quality.bandwidth_hz > 15000 and license in ('CC0')`.
        batch_size: most songs in a batch, on each worker.
        max_frames: most frames in a batch, padding included.
        max_frames_per_song: longer songs are cropped at random, differently in each epoch.
        bucket_width: songs whose lengths differ by at most this share are shuffled together; it bounds the padding.
        text_variants: caption variants to draw from, one per song and epoch; empty means all.
        max_text_tokens: longer captions are cut.
        max_lyric_ids: longer lyrics are cut.
        ssl: encoders to align the model with.
        validation_share: share of the songs to hold out; which ones depends only on their own audio.
        seed: seed of order, crops and caption variants.
        on_corrupt: `stop` at a file that cannot be read, or `skip` its songs and list it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: tuple[Place, ...] = Field(min_length=1)
    where: str | None = None
    batch_size: int = Field(8, ge=1)
    max_frames: int | None = Field(None, ge=1)
    max_frames_per_song: int = Field(2584, ge=1)
    bucket_width: float = Field(0.05, gt=0)
    text_variants: tuple[str, ...] = ()
    max_text_tokens: int = Field(256, ge=1)
    max_lyric_ids: int = Field(4096, ge=1)
    ssl: tuple[str, ...] = ()
    validation_share: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    on_corrupt: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_frames is not None and self.max_frames < self.max_frames_per_song:
            raise ValueError(
                f"a song of {self.max_frames_per_song} frames (max_frames_per_song) does not fit into a batch of "
                f"{self.max_frames} (max_frames)"
            )
        return self
