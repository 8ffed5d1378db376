import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages.text.bpe import BUILT_IN
from tests.support import tiny_checkpoint
from training.checkpoints.released_layout import (
    Checkpoint,
    CheckpointProblem,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from training.model import ACEStepTransformer2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.build(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def loaded(built: Path) -> Checkpoint:
    return load_checkpoint(built)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "copy")


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(weights)
    save_file(weights, path)


def test_the_files_of_a_random_checkpoint_are_those_of_the_release(built: Path) -> None:
    files = {file.relative_to(built).as_posix() for file in built.rglob("*") if file.is_file()}
    models = ("ace_step_transformer", "music_dcae_f8c8", "music_vocoder")
    assert files >= {f"{model}/{name}" for model in models for name in ("config.json", WEIGHTS)}
    assert {name.split("/")[0] for name in files} == {*models, "umt5-base", "lyric_vocabulary.json"}
    assert files >= {f"umt5-base/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    classes = [json.loads((built / model / "config.json").read_text())["_class_name"] for model in models]
    assert classes == ["ACEStepTransformer2DModel", "AutoencoderDC", "ADaMoSHiFiGANV1"]


@pytest.mark.parametrize("max_shard_size", ["5GB", "1MB"])
def test_weights_of_a_random_checkpoint_survive_bit_for_bit(
    loaded: Checkpoint, tmp_path: Path, max_shard_size: str
) -> None:
    save_checkpoint(
        tmp_path / "new",
        transformer=loaded.transformer,
        codec=loaded.codec,
        text_encoder=loaded.text_encoder,
        vocabulary=loaded.vocabulary,
        max_shard_size=max_shard_size,
    )
    again = load_checkpoint(tmp_path / "new")
    sharded = len(list((tmp_path / "new" / "ace_step_transformer").glob("*.safetensors"))) > 1
    assert sharded == (max_shard_size == "1MB")
    assert same(again.transformer, loaded.transformer)
    assert same(again.codec, loaded.codec)
    assert again.text_encoder == tmp_path / "new" / "umt5-base"
    assert again.vocabulary is not None
    assert again.vocabulary.read_bytes() == BUILT_IN.read_bytes()
    latents = torch.randn(1, 8, 16, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.codec.decode(latents), loaded.codec.decode(latents))


def test_diffusers_itself_reads_what_was_written(built: Path, loaded: Checkpoint) -> None:
    theirs, report = ACEStepTransformer2DModel.from_pretrained(built / "ace_step_transformer", output_loading_info=True)
    assert not any(report.values())
    assert same(theirs, loaded.transformer)


def test_the_dtype_is_for_all_but_the_vocoder(built: Path, loaded: Checkpoint) -> None:
    half = load_checkpoint(built, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.transformer.state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in half.codec.autoencoder.state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in half.codec.vocoder.parameters()} == {torch.float32}
    halves, wholes = half.transformer.state_dict(), loaded.transformer.state_dict()
    assert all(torch.equal(halves[name], wholes[name].bfloat16()) for name in wholes)
    assert not half.transformer.training
    assert not half.codec.vocoder.training


def test_changing_loaded_weights_leaves_the_files_alone(copy: Path) -> None:
    before = fingerprint(copy)
    with torch.no_grad():
        for parameter in load_checkpoint(copy).transformer.parameters():
            parameter.zero_()
    assert fingerprint(copy) == before


def test_text_encoder_and_vocabulary_may_be_absent_or_renamed(copy: Path) -> None:
    (copy / "umt5-base").rename(copy / "text_encoder")
    (copy / "lyric_vocabulary.json").unlink()
    checkpoint = load_checkpoint(copy)
    assert checkpoint.text_encoder == copy / "text_encoder"
    assert checkpoint.vocabulary is None
    shutil.rmtree(copy / "text_encoder")
    assert load_checkpoint(copy).text_encoder is None


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def config(part: str, **changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / part / "config.json", **changes)


def weights(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_weights(folder / part / WEIGHTS, change)


def fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


def replace(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def pickled(part: str) -> Callable[[Path], object]:
    return lambda folder: (folder / part / WEIGHTS).rename(folder / part / "diffusion_pytorch_model.bin")


def misplaced(folder: Path) -> None:
    part = folder / "music_vocoder"
    (part / WEIGHTS).rename(part / "diffusion_pytorch_model-00001-of-00001.safetensors")


def indexed(*shards: str) -> Callable[[Path], object]:
    index = {"weight_map": {f"weight{number}": shard for number, shard in enumerate(shards)}}
    return write(f"music_vocoder/{WEIGHTS}.index.json", json.dumps(index))


TRANSFORMER, CODEC, VOCODER = "ace_step_transformer", "music_dcae_f8c8", "music_vocoder"

DAMAGES = {
    "no transformer": (remove(TRANSFORMER), [TRANSFORMER, "missing"]),
    "no autoencoder": (remove(CODEC), [CODEC, "missing"]),
    "no vocoder": (remove(VOCODER), [VOCODER, "missing"]),
    "no config": (remove(f"{CODEC}/config.json"), [f"{CODEC}/config.json", "cannot be read"]),
    "config is no JSON": (write(f"{VOCODER}/config.json", "{"), [f"{VOCODER}/config.json", "cannot be read"]),
    "config is no object": (write(f"{VOCODER}/config.json", "[]"), [f"{VOCODER}/config.json", "not a JSON object"]),
    "another class": (config(TRANSFORMER, _class_name="UNet"), ["config.json", "UNet", "ACEStepTransformer2DModel"]),
    "unknown key": (config(TRANSFORMER, layers=3), ["config.json", "has no layers"]),
    "sizes that contradict": (config(TRANSFORMER, inner_dim=33), ["config.json", "inner_dim is 33"]),
    "sizes that are none": (config(TRANSFORMER, num_layers="two"), ["config.json", "describes no"]),
    "no weights": (remove(f"{VOCODER}/{WEIGHTS}"), [VOCODER, f"lacks {WEIGHTS}"]),
    "pickled weights": (pickled(VOCODER), [VOCODER, "diffusion_pytorch_model.bin", "convert"]),
    "pickled text encoder": (
        lambda folder: (folder / "umt5-base/model.safetensors").rename(folder / "umt5-base/pytorch_model.bin"),
        ["umt5-base", "pytorch_model.bin", "convert"],
    ),
    "shards without an index": (misplaced, [VOCODER, f"lacks {WEIGHTS}.index.json"]),
    "index of absent shards": (indexed("a.safetensors", "b.safetensors"), [VOCODER, "a.safetensors, b.safetensors"]),
    "index of files elsewhere": (indexed("../secret.safetensors"), ["index.json", "beside it"]),
    "index of nothing": (indexed(), ["index.json", "weight_map"]),
    "a weight less": (
        weights(TRANSFORMER, lambda tensors: tensors.pop("t_block.1.bias")),
        [TRANSFORMER, "lacks t_block.1.bias"],
    ),
    "a weight more": (weights(TRANSFORMER, replace("extra", 2)), [TRANSFORMER, "has not: extra"]),
    "many weights less": (config(TRANSFORMER, num_layers=3), [TRANSFORMER, "transformer_blocks.2", "27 more"]),
    "another shape": (
        weights(VOCODER, replace("backbone.norm.bias", 7)),
        [VOCODER, "backbone.norm.bias is [7], not [32]"],
    ),
    "NaN": (weights(TRANSFORMER, fill("lyric_proj.bias", torch.nan)), [WEIGHTS, "lyric_proj.bias", "NaN"]),
    "infinity": (weights(CODEC, fill("encoder.conv_in.bias", torch.inf)), [WEIGHTS, "encoder.conv_in.bias"]),
    "another codec": (config(VOCODER, sampling_rate=48_000), [VOCODER, "44100 Hz"]),
    "vocabulary is none": (write("lyric_vocabulary.json", "{}"), ["lyric_vocabulary.json", "no vocabulary"]),
    "text encoder of another width": (config("umt5-base", d_model=48), ["umt5-base", "48", "32"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_the_name_of_what_is_wrong(copy: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(copy)
    with pytest.raises(CheckpointProblem) as problem:
        load_checkpoint(copy)
    message = str(problem.value)
    assert str(copy) in message
    assert [word for word in words if word not in message] == []


def test_a_checkpoint_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="no folder"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("changes", [{"in_channels": 4}, {"out_channels": 4}, {"max_height": 8, "patch_size": (8, 1)}])
def test_transformer_and_codec_must_mean_the_same_latents(
    loaded: Checkpoint, tmp_path: Path, changes: dict[str, object]
) -> None:
    save_checkpoint(tmp_path / "new", transformer=tiny_checkpoint.transformer(**changes), codec=loaded.codec)
    name, value = next(iter(changes.items()))
    with pytest.raises(CheckpointProblem, match=f"{name} is {value}, but the codec's latents have 8 channels of 16"):
        load_checkpoint(tmp_path / "new")


def test_a_vocabulary_of_another_size_is_refused(copy: Path) -> None:
    path = copy / "lyric_vocabulary.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["added_tokens"].append(vocabulary["added_tokens"][0] | {"id": 5000, "content": "[solo-2]"})
    path.write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointProblem, match=r"has 1241 tokens, but the transformer knows 1240"):
        load_checkpoint(copy)


def test_weights_that_a_narrow_dtype_cannot_hold_are_refused(copy: Path) -> None:
    edit_weights(copy / TRANSFORMER / WEIGHTS, fill("lyric_proj.bias", 1e6))
    load_checkpoint(copy, dtype=torch.bfloat16)
    with pytest.raises(CheckpointProblem, match=r"lyric_proj\.bias .* in torch\.float16: .* wider dtype"):
        load_checkpoint(copy, dtype=torch.float16)


@settings(max_examples=15)
@given(kept=st.floats(0, 0.9999))
def test_weights_cut_off_anywhere_are_refused(
    built: Path, tmp_path_factory: pytest.TempPathFactory, kept: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / TRANSFORMER).mkdir()
    shutil.copy(built / TRANSFORMER / "config.json", folder / TRANSFORMER)
    content = (built / TRANSFORMER / WEIGHTS).read_bytes()
    (folder / TRANSFORMER / WEIGHTS).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointProblem, match="damaged or cut off"):
        load_checkpoint(folder)
    shutil.rmtree(folder)


def test_nothing_is_overwritten(loaded: Checkpoint, copy: Path) -> None:
    before = fingerprint(copy)
    with pytest.raises(CheckpointProblem, match="exists: choose a new folder"):
        save_checkpoint(copy, transformer=loaded.transformer, codec=loaded.codec)
    assert fingerprint(copy) == before


def test_an_empty_folder_is_filled(loaded: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", transformer=loaded.transformer, codec=loaded.codec)
    assert same(load_checkpoint(tmp_path / "empty").transformer, loaded.transformer)


def test_a_failed_save_leaves_nothing_behind(loaded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(
            tmp_path / "new", transformer=loaded.transformer, codec=loaded.codec, vocabulary=tmp_path / "absent.json"
        )
    assert list(tmp_path.iterdir()) == []


def test_pickles_of_a_text_encoder_are_not_copied(built: Path, loaded: Checkpoint, tmp_path: Path) -> None:
    encoder = shutil.copytree(built / "umt5-base", tmp_path / "some-encoder")
    (encoder / "pytorch_model.bin").write_bytes(b"code")
    save_checkpoint(tmp_path / "new", transformer=loaded.transformer, codec=loaded.codec, text_encoder=encoder)
    copied = {file.name for file in (tmp_path / "new" / "text_encoder").iterdir()}
    assert copied == {file.name for file in (built / "umt5-base").iterdir()}


def test_the_fingerprint_follows_the_content_and_not_the_place(built: Path, copy: Path) -> None:
    original = fingerprint(built)
    assert len(original) == 16
    (copy / "README.md").write_text("which does not count")
    assert fingerprint(copy) == original
    seen = {original}
    for change in (
        weights(VOCODER, fill("backbone.norm.bias", 0.5)),
        config(TRANSFORMER, rope_theta=10_000.0),
        write("umt5-base/tokenizer_config.json", "{}"),
        remove("lyric_vocabulary.json"),
    ):
        change(copy)
        seen.add(fingerprint(copy))
    assert len(seen) == 5
