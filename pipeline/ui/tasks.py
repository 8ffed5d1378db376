"""The sampler's tasks on the page: labels, descriptions and visible fields."""

from dataclasses import dataclass

_GUIDANCE = frozenset({"guidance_scale"})
_STEPS = frozenset({"oss_steps"})
_SOLVER = frozenset({"scheduler_type", "omega_scale"})
_SONG_GUIDANCE = _GUIDANCE | {
    "cfg_type",
    "guidance_interval",
    "guidance_interval_decay",
    "min_guidance_scale",
    "guidance_scale_text",
    "guidance_scale_lyric",
    "use_erg_tag",
    "use_erg_lyric",
    "use_erg_diffusion",
}
_RETAKE = frozenset({"seed", "retake_seed", "retake_variance"})


@dataclass(frozen=True)
class Task:
    """A task of the sampler as the page offers it.

    Attributes:
        label: label of the radio button.
        about: one sentence shown below.
        fields: names of the options and inputs to show, besides prompt, lyrics and steps.
    """

    label: str
    about: str
    fields: frozenset[str]


TASKS = {
    "text2music": Task(
        "Text to music",
        "A new song from a prompt and lyrics.",
        frozenset({"duration", "seed"}) | _STEPS | _SOLVER | _SONG_GUIDANCE,
    ),
    "retake": Task(
        "Retake",
        "A variation of an earlier take: keep its seed, prompt, lyrics and duration, and say how far to move away.",
        frozenset({"duration"}) | _STEPS | _SOLVER | _SONG_GUIDANCE | _RETAKE,
    ),
    "repaint": Task(
        "Repaint",
        "Regenerate a window of the source and keep the rest.",
        frozenset({"source", "repaint_start", "repaint_end"}) | _STEPS | _SONG_GUIDANCE | _RETAKE,
    ),
    "extend": Task(
        "Extend",
        "Continue after the end of the source, or add something before its start.",
        frozenset({"source", "extend_left", "extend_right"}) | _STEPS | _SONG_GUIDANCE | _RETAKE,
    ),
    "edit": Task(
        "Edit",
        "Turn the source, described by prompt and lyrics, into what the target prompt and lyrics say.",
        frozenset({"source", "target_prompt", "target_lyrics", "n_min", "n_max", "n_avg", "retake_seed"}) | _GUIDANCE,
    ),
    "audio2audio": Task(
        "Audio to audio",
        "A song from prompt and lyrics that keeps something of the source.",
        frozenset({"source", "ref_audio_strength", "seed"}) | _SOLVER | _SONG_GUIDANCE,
    ),
}
