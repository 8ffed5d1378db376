"""Options of a sampling run, checked before it starts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["text2music", "retake", "repaint", "extend", "edit", "audio2audio"]
Scheduler = Literal["euler", "heun", "pingpong"]
Guidance = Literal["apg", "cfg", "cfg_star"]

# Longest audio of one run. Not a memory limit, since attention is linear in time: the model was trained on at most
# 240 s.
MAX_DURATION_S = 600.0

SOURCED = ("repaint", "extend", "edit", "audio2audio")


class SamplingOptions(BaseModel):
    """All settings of a sampling run except conditions, seeds and source (ACE-Step, arXiv 2506.00045).

    Attributes:
        task: what to do; all but `text2music` and `retake` need source audio.
        duration: seconds of audio; tasks with a source take its length.
        infer_steps: steps from noise to latents. Heun evaluates the model twice in each but the last.
        guidance_scale: guidance by text, lyrics and speaker together; 1 or less switches guidance off.
        omega_scale: above 0, the steps of euler and heun are up to 10 % larger about their mean; below 0, smaller.
        scheduler_type: solver of text2music, retake and audio2audio; the other tasks use plain Euler steps.
        cfg_type: how the two velocities are combined: adaptive projected guidance (arXiv 2410.02416), classifier-free
            guidance (arXiv 2207.12598) or CFG-Zero* (arXiv 2503.18886).
        guidance_interval: share of the steps that is guided, centred in the run (arXiv 2404.07724).
        guidance_interval_decay: how far the scale falls over the interval: 0 not at all, 1 to `min_guidance_scale`.
        min_guidance_scale: see `guidance_interval_decay`.
        oss_steps: optimal-step schedule: 1-based indices into the grid of `max(oss_steps)` steps, used instead of
            `infer_steps` evenly spaced ones.
        use_erg_tag: weaken the text encoder for the unconditional branch instead of zeroing the text
            (entropy-rectifying guidance, arXiv 2504.13987).
        use_erg_lyric: the same for the lyric encoder.
        use_erg_diffusion: the same for the transformer.
        guidance_scale_text: if this and `guidance_scale_lyric` are above 1, text and lyrics are guided separately.
        guidance_scale_lyric: see `guidance_scale_text`.
        retake_variance: how far retake, repaint and extend move from the first noise to the second, 0 to 1; extend
            defaults to 1.
        repaint_start: start of the window in seconds of the source; with `extend`, below 0 adds to the left.
        repaint_end: end of the window in seconds of the source; with `extend`, beyond its end adds to the right.
            None is the end of the source.
        extend_left: seconds to add before the source.
        extend_right: seconds to add after the source.
        ref_audio_strength: how much of the source audio2audio keeps, 0 to 1.
        n_min: share of the steps that an edit skips; more keeps more of the source (FlowEdit, arXiv 2412.08629).
        n_max: share of the steps up to which an edit follows the difference of the two velocities.
        n_avg: noise samples that an edit averages over in each step.
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
        """Extensions default to a variance of 1: new frames have nothing to start from halfway."""
        if isinstance(given, dict) and given.get("task") == "extend":
            return {"retake_variance": 1.0, **given}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.oss_steps) != sorted(set(self.oss_steps)):
            raise ValueError("oss_steps must be strictly increasing")
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
                f"cfg_star stands still in the first two steps, and the run has only {self.steps}: raise infer_steps, "
                "or lower guidance_interval"
            )
        return self

    @property
    def steps(self) -> int:
        """Steps of the run; repaint, extend and edit may skip the first of them."""
        if self.task == "audio2audio":
            return int((1 - self.ref_audio_strength) * self.infer_steps)
        return len(self.oss_steps) or self.infer_steps

    @property
    def needs_source(self) -> bool:
        """Whether the task starts from audio."""
        return self.task in SOURCED

    @property
    def guided(self) -> bool:
        """Whether guidance is on, so that an unconditional branch is computed."""
        return self.guidance_scale > 1 or self.doubly_guided

    @property
    def doubly_guided(self) -> bool:
        """Whether text and lyrics are guided separately."""
        return self.guidance_scale_text > 1 and self.guidance_scale_lyric > 1

    @property
    def _never_moves(self) -> bool:
        zeroed = self.cfg_type == "cfg_star" and self.task != "edit" and self.guided and not self.doubly_guided
        return zeroed and self.guidance_interval == 1 and self.steps <= 2
