"""What a sampling run can be asked for, and what is refused before it starts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["text2music", "retake", "repaint", "extend", "edit", "audio2audio"]
Scheduler = Literal["euler", "heun", "pingpong"]
Guidance = Literal["apg", "cfg", "cfg_star"]

# Longest audio of one run. The attention is linear in time, so this bounds no memory: beyond it the model is far from
# anything it was trained on (240 s).
MAX_DURATION_S = 600.0

SOURCED = ("repaint", "extend", "edit", "audio2audio")


class SamplingOptions(BaseModel):
    """Everything about a run besides conditions, seeds and source (ACE-Step, arXiv 2506.00045).

    Attributes:
        task: what to do; all but `text2music` and `retake` need source audio.
        duration: seconds of audio; tasks with a source take its length.
        infer_steps: steps from noise to latents. Heun evaluates the model twice in all but the last.
        guidance_scale: of the text, lyrics and speaker against nothing; 1 or less switches guidance off.
        omega_scale: above 0, steps of euler and heun are up to a tenth larger about their mean, below it smaller.
        scheduler_type: solver of text2music, retake and audio2audio; the other tasks take plain Euler steps.
        cfg_type: how the two velocities are combined: adaptive projected guidance (arXiv 2410.02416), classifier-free
            guidance (arXiv 2207.12598) or CFG-Zero* (arXiv 2503.18886).
        guidance_interval: middle share of the steps that are guided (arXiv 2404.07724).
        guidance_interval_decay: share of the way down to `min_guidance_scale` that the scale falls over the interval.
        min_guidance_scale: where a decay of 1 ends.
        oss_steps: optimal-step schedule: 1-based indices into the grid of `max(oss_steps)` steps, used instead of
            `infer_steps` evenly spaced ones.
        use_erg_tag: weaken the text encoder for the unconditional branch instead of zeroing the text
            (entropy-rectifying guidance, arXiv 2504.13987).
        use_erg_lyric: the same for the lyric encoder.
        use_erg_diffusion: the same for the transformer.
        guidance_scale_text: above 1, together with `guidance_scale_lyric`, guides by text and lyrics apart.
        guidance_scale_lyric: see `guidance_scale_text`.
        retake_variance: how far retake, repaint and extend leave the first seed's noise, 0 to 1; extend's default is 1.
        repaint_start: of the window, seconds into the source; negative extends to the left.
        repaint_end: of the window, seconds into the source; past its end extends to the right. None is its end.
        extend_left: seconds to put before the source.
        extend_right: seconds to put after the source.
        ref_audio_strength: how much of the source audio2audio keeps, 0 to 1.
        n_min: share of the steps that an edit skips; more keeps more of the source (FlowEdit, arXiv 2412.08629).
        n_max: share of the steps up to which an edit follows the difference of the two velocities.
        n_avg: noises an edit averages over in each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Task = "text2music"
    duration: float = Field(30.0, ge=1.0, le=MAX_DURATION_S)
    infer_steps: int = Field(27, ge=1, le=1000)
    guidance_scale: float = Field(15.0, ge=0.0)
    omega_scale: float = 10.0
    scheduler_type: Scheduler = "euler"
    cfg_type: Guidance = "apg"
    guidance_interval: float = Field(0.5, ge=0.0, le=1.0)
    guidance_interval_decay: float = Field(0.0, ge=0.0, le=1.0)
    min_guidance_scale: float = Field(3.0, ge=0.0)
    oss_steps: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = ()
    use_erg_tag: bool = True
    use_erg_lyric: bool = True
    use_erg_diffusion: bool = True
    guidance_scale_text: float = Field(0.0, ge=0.0)
    guidance_scale_lyric: float = Field(0.0, ge=0.0)
    retake_variance: float = Field(0.5, ge=0.0, le=1.0)
    repaint_start: float = 0.0
    repaint_end: float | None = None
    extend_left: float = Field(0.0, ge=0.0)
    extend_right: float = Field(0.0, ge=0.0)
    ref_audio_strength: float = Field(0.5, ge=0.0, le=1.0)
    n_min: float = Field(0.0, ge=0.0, le=1.0)
    n_max: float = Field(1.0, ge=0.0, le=1.0)
    n_avg: int = Field(1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _take_all_steps_for_new_frames(cls, given: Any) -> Any:
        """An extension has nothing to start from halfway."""
        if isinstance(given, dict) and given.get("task") == "extend":
            return {"retake_variance": 1.0, **given}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.oss_steps) != sorted(set(self.oss_steps)):
            raise ValueError("oss_steps must rise from step to step")
        if self.oss_steps and self.task in ("edit", "audio2audio"):
            raise ValueError(f"oss_steps choose among the steps from pure noise, which {self.task} does not start from")
        if self.repaint_end is not None and self.repaint_end <= self.repaint_start:
            raise ValueError(f"repaint_end ({self.repaint_end:g} s) must lie after repaint_start")
        if self.n_min > self.n_max:
            raise ValueError(f"n_min ({self.n_min:g}) must not be above n_max ({self.n_max:g})")
        if self.steps == 0:
            raise ValueError(
                f"a strength of {self.ref_audio_strength:g} leaves none of {self.infer_steps} steps: "
                "lower ref_audio_strength or raise infer_steps"
            )
        if self._never_moves:
            raise ValueError(
                f"cfg_star stands still in the first two steps, and {self.steps} would be all: raise infer_steps, "
                "or lower guidance_interval"
            )
        return self

    @property
    def steps(self) -> int:
        """Steps of a whole run; tasks that start halfway skip some of them."""
        if self.task == "audio2audio":
            return int((1 - self.ref_audio_strength) * self.infer_steps)
        return len(self.oss_steps) or self.infer_steps

    @property
    def needs_source(self) -> bool:
        """Whether the task starts from audio."""
        return self.task in SOURCED

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch is computed at all."""
        return self.guidance_scale > 1 or self.doubly_guided

    @property
    def doubly_guided(self) -> bool:
        """Whether text and lyrics are guided apart."""
        return self.guidance_scale_text > 1 and self.guidance_scale_lyric > 1

    @property
    def _never_moves(self) -> bool:
        zeroed = self.cfg_type == "cfg_star" and self.task != "edit" and self.guided and not self.doubly_guided
        return zeroed and self.guidance_interval == 1 and self.steps <= 2
