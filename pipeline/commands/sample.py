"""`songmill sample`. `SampleConfig` and `SamplingOptions` document the settings in full."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.exit_codes import guarded
from pipeline.console.escaping import tell

if TYPE_CHECKING:
    from pipeline.sampling.sample import WrittenTake

_COMMAND_ONLY = ("config", "overwrite", "as_json", "quiet")


def _option(panel: str, name: str, text: str, default: str = "") -> Any:
    """An option without a default, so that a file can set it; `default` is only shown in the help."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=default or False)


def _song(name: str, text: str, default: str = "") -> Any:
    return _option("Song", name, text, default)


def _sampling(name: str, text: str, default: str = "") -> Any:
    return _option("Sampling", name, text, default)


def _guidance(name: str, text: str, default: str = "") -> Any:
    return _option("Guidance", name, text, default)


def _erg(name: str, text: str, default: str = "") -> Any:
    return _option("Entropy-rectifying guidance", name, text, default)


def _editing(name: str, text: str, default: str = "") -> Any:
    return _option("Editing", name, text, default)


def _model(name: str, text: str, default: str = "") -> Any:
    return _option("Model", name, text, default)


def _output(name: str, text: str, default: str = "") -> Any:
    return _option("Output", name, text, default)


def sample_command(
    checkpoint: Annotated[
        Path | None, typer.Argument(show_default=False, help="Checkpoint folder, in the released layout.")
    ] = None,
    prompt: Annotated[
        list[str] | None, _song("--prompt", "What to generate: genre, mood, instruments. Several make a batch.")
    ] = None,
    lyrics: Annotated[list[Path] | None, _song("--lyrics", "Text file; one for all prompts or one each.")] = None,
    language: Annotated[
        str | None, _song("--language", "Language of lyric lines where detection is unsure, such as en.")
    ] = None,
    duration: Annotated[float | None, _song("--duration", "Seconds, 1 to 600.", "30")] = None,
    seed: Annotated[
        list[int] | None,
        _song("--seed", "One per song, or the first of consecutive ones. Several make a batch.", "random"),
    ] = None,
    speaker: Annotated[Path | None, _song("--speaker", "Voice embedding, .npy or .safetensors.")] = None,
    infer_steps: Annotated[int | None, _sampling("--steps", "Steps from noise to song.", "27")] = None,
    scheduler_type: Annotated[str | None, _sampling("--scheduler", "euler, heun or pingpong.", "euler")] = None,
    oss_steps: Annotated[
        str | None, _sampling("--oss-steps", "Optimal-step schedule: indices into the grid, such as 1,3,4,9.")
    ] = None,
    omega_scale: Annotated[
        float | None, _sampling("--omega-scale", "Above 0: larger steps; below 0: smaller ones.", "10")
    ] = None,
    cfg_type: Annotated[str | None, _guidance("--guidance", "apg, cfg or cfg_star.", "apg")] = None,
    guidance_scale: Annotated[
        float | None, _guidance("--guidance-scale", "How closely to follow prompt and lyrics; 1 is off.", "15")
    ] = None,
    guidance_interval: Annotated[
        float | None,
        _guidance("--guidance-interval", "Share of the steps that is guided, in the middle of the run.", "0.5"),
    ] = None,
    guidance_interval_decay: Annotated[
        float | None, _guidance("--guidance-interval-decay", "How far the scale falls over the interval, 0 to 1.", "0")
    ] = None,
    min_guidance_scale: Annotated[
        float | None, _guidance("--min-guidance-scale", "The scale at the end of a decay of 1.", "3")
    ] = None,
    guidance_scale_text: Annotated[
        float | None,
        _guidance("--guidance-scale-text", "If this and the next are above 1: separate scale for the text.", "0"),
    ] = None,
    guidance_scale_lyric: Annotated[
        float | None, _guidance("--guidance-scale-lyric", "The separate scale for the lyrics.", "0")
    ] = None,
    use_erg_tag: Annotated[
        bool | None, _erg("--erg-tag/--no-erg-tag", "Guide against a weakened text encoder instead of no text.", "on")
    ] = None,
    use_erg_lyric: Annotated[
        bool | None, _erg("--erg-lyric/--no-erg-lyric", "The same for the lyric encoder.", "on")
    ] = None,
    use_erg_diffusion: Annotated[
        bool | None, _erg("--erg-diffusion/--no-erg-diffusion", "The same for the transformer.", "on")
    ] = None,
    task: Annotated[
        str | None,
        _editing("--task", "text2music, retake, repaint, extend, edit or audio2audio.", "text2music"),
    ] = None,
    source: Annotated[
        Path | None, _editing("--source", "Audio file that repaint and the tasks after it start from.")
    ] = None,
    retake_variance: Annotated[
        float | None,
        _editing("--variance", "How far retake, repaint and extend move from the first noise, 0 to 1.", "0.5"),
    ] = None,
    retake_seed: Annotated[
        list[int] | None, _editing("--retake-seed", "Seed of the second noise; the same rules as --seed.", "random")
    ] = None,
    repaint_start: Annotated[
        float | None, _editing("--repaint-start", "Start of the new part in seconds.", "0")
    ] = None,
    repaint_end: Annotated[
        float | None, _editing("--repaint-end", "End of the new part in seconds.", "the source's end")
    ] = None,
    extend_left: Annotated[float | None, _editing("--extend-left", "Seconds to add before the source.", "0")] = None,
    extend_right: Annotated[float | None, _editing("--extend-right", "Seconds to add after the source.", "0")] = None,
    ref_audio_strength: Annotated[
        float | None, _editing("--strength", "How much of the source audio2audio keeps, 0 to 1.", "0.5")
    ] = None,
    target_prompt: Annotated[
        list[str] | None, _editing("--target-prompt", "The result of an edit; --prompt describes the source.")
    ] = None,
    target_lyrics: Annotated[
        list[Path] | None, _editing("--target-lyrics", "Text file of an edit's lyrics.", "those of --lyrics")
    ] = None,
    n_min: Annotated[float | None, _editing("--n-min", "Share of the steps that an edit skips.", "0")] = None,
    n_max: Annotated[
        float | None, _editing("--n-max", "Share of the steps after which an edit samples freely.", "1")
    ] = None,
    n_avg: Annotated[int | None, _editing("--n-avg", "Noise samples that an edit averages over.", "1")] = None,
    lora: Annotated[list[str] | None, _model("--lora", "PATH or PATH:SCALE; repeatable.")] = None,
    text_encoder: Annotated[
        str | None, _model("--text-encoder", "Folder, or entry of the model store.", "the checkpoint's")
    ] = None,
    vocabulary: Annotated[
        Path | None, _model("--vocabulary", "Lyric vocabulary, tokenizers JSON.", "the checkpoint's")
    ] = None,
    device: Annotated[str | None, _model("--device", "auto, cpu, cuda or cuda:N.", "auto")] = None,
    dtype: Annotated[str | None, _model("--dtype", "float32 or bfloat16.", "bfloat16 on CUDA, else float32")] = None,
    compile: Annotated[bool | None, _model("--compile/--no-compile", "Compile the transformer.", "off")] = None,
    int8: Annotated[bool | None, _model("--int8/--no-int8", "Use 8-bit weights, for small cards.", "off")] = None,
    offload: Annotated[
        bool | None, _model("--offload/--no-offload", "Keep idle models in main memory, for small cards.", "off")
    ] = None,
    threads: Annotated[
        int | None, _model("--threads", "CPU threads; another number rounds differently.", "all cores")
    ] = None,
    out: Annotated[
        Path | None,
        _output(
            "--out", ".wav, .flac (both 24 bits) or .ogg (Opus). {n} and {seed} stand for a song's number and seed."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "--from",
            rich_help_panel="Output",
            show_default=False,
            help="YAML file of settings, or a song's .json to reproduce it; the command line takes precedence.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace existing files.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel="Output", help="Print the content of the songs' .json files.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", rich_help_panel="Output", help="Show no progress.")] = False,
) -> None:
    """Generate songs from a checkpoint, or change a song. A .json file beside each one allows to reproduce it.

    [bold]Examples[/]

      songmill sample CKPT --prompt "folk, female voice, guitar" --lyrics words.txt --duration 60 --out song.wav

      songmill sample CKPT --prompt "house, 124 bpm" --seed 1 --seed 2 --out "take-{n}.flac"

      songmill sample CKPT --task repaint --source song.wav --repaint-start 8 --repaint-end 12 --prompt folk --out b.wav

      songmill sample CKPT --task edit --source song.wav --prompt folk --target-prompt metal --n-min 0.2 --out metal.wav

      songmill sample --from song.json --out again.wav
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in _COMMAND_ONLY}
    with guarded("interrupted; completed songs have been written"):
        takes = _sample(config, given, overwrite=overwrite, quiet=quiet)
    if as_json:
        typer.echo(json.dumps([take.sidecar for take in takes], indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(map(_line, takes)))


def _sample(file: Path | None, given: Mapping[str, Any], *, overwrite: bool, quiet: bool) -> "list[WrittenTake]":
    # Imported here: torch takes seconds to import, and the other commands do not need it.
    from pipeline.sampling.config import build_config, read_settings, resolve
    from pipeline.sampling.progress import shown
    from pipeline.sampling.sample import differences, outputs, provenance, sample

    settings, recorded = read_settings(file) if file else ({}, {})
    config = resolve(build_config(settings, given))
    paths = outputs(config, overwrite)
    with shown(enabled=not quiet) as watch, warnings.catch_warnings():
        warnings.showwarning = _warn
        made_with = provenance(config)
        for difference in differences(recorded, made_with):
            tell(f"not as in {file}: {difference}", "yellow")
        return sample(config, paths, made_with, watch)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    tell(f"warning: {message}", "yellow")


def _line(take: "WrittenTake") -> str:
    clip, speed = take.sidecar["clip"], take.sidecar["timing"]["real_time_factor"]
    turned_down = "" if clip["gain"] == 1 else f", turned down to {clip['gain']:.2f}"
    return f"{take.path}: {clip['duration_s']:.1f} s, seed {clip['seed']}, {speed:.2f}x real time{turned_down}"
