"""The latents stage, with a codec of random weights in the released layout."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from safetensors.torch import load_file, save_file

from pipeline.planning.dag import DagError, build_dag
from schemas.config import CurateConfig
from stages import pcm
from stages.latents import Latents
from stages.ssl import Ssl
from tests.support import tiny_checkpoint
from tests.support.tracks import load, measure, ready
from training.checkpoints.released_layout import load_checkpoint

FRAME = 4096  # samples
WEIGHTS = Path("music_dcae_f8c8", "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.build(tmp_path_factory.mktemp("checkpoint") / "random")


@pytest.fixture
def codec(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    for part in ("music_dcae_f8c8", "music_vocoder"):
        shutil.copytree(checkpoint / part, tmp_path / part)
    return tmp_path


@pytest.fixture(scope="module")
def song(audio: Callable[[str, str], Path]) -> bytes:
    """26.2 s, more than the codec's window."""
    return pcm.encode(load(audio("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3"), 26.2))


def stage(codec: Path) -> Latents:
    made = Latents(Latents.Params(codec=codec))
    made.setup({})
    return made


def stored(codec: Path, heard: bytes) -> np.ndarray:
    column = measure(stage(codec), pcm=heard)["latents"]
    latents = np.frombuffer(column["data"], "<f2").reshape(-1, 8, 16)
    assert len(latents) == column["frames"]
    return latents


def dag_of(codec: Path | None):
    params = {"codec": str(codec)} if codec else {}
    stages = {"decode": {}, "latents": params}
    return build_dag(CurateConfig.model_validate({"input": {"path": "x"}, "output": "y", "stages": stages}), {}, {})


def test_a_random_codec_stores_what_the_checkpoint_s_codec_encodes(checkpoint: Path, song: bytes) -> None:
    waveform = torch.from_numpy(np.ascontiguousarray(pcm.stereo(song)))[None]
    latents, frames = load_checkpoint(checkpoint).codec.encode(waveform, 44_100)
    expected = latents[0, :, :, : int(frames)].permute(2, 0, 1).half().numpy()
    assert expected.shape == (282, 8, 16)
    assert expected.std() > 0.01
    np.testing.assert_array_equal(stored(checkpoint, song), expected)


def test_both_channels_count(checkpoint: Path, song: bytes) -> None:
    left_only = pcm.stereo(song)[:, : 20 * FRAME].copy()
    left_only[1] = 0
    assert not np.array_equal(stored(checkpoint, pcm.encode(left_only)), stored(checkpoint, song[: 20 * FRAME * 4]))


@pytest.mark.parametrize("samples", [0, 1, FRAME - 1, FRAME, 3 * FRAME + 17, 50 * FRAME])
def test_there_are_as_many_frames_as_ssl_has(
    samples: int, checkpoint: Path, song: bytes, ssl: Ssl, encoder: Latents
) -> None:
    heard = song[: samples * 4]
    frames = measure(encoder, pcm=heard)["latents"]["frames"]
    assert frames == samples // FRAME == measure(ssl, pcm=heard)["ssl"]["whisper_base"]["frames"]


@pytest.fixture(scope="module")
def ssl(weights: Callable) -> Ssl:
    return ready(Ssl, weights)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Latents:
    return stage(checkpoint)


def test_an_autoencoder_alone_will_do_and_so_will_a_vocoder_without_weights(codec: Path, song: bytes) -> None:
    heard = song[: 40 * FRAME * 4]
    expected = stored(codec, heard)
    (codec / "music_vocoder" / "diffusion_pytorch_model.safetensors").unlink()
    np.testing.assert_array_equal(stored(codec, heard), expected)
    shutil.rmtree(codec / "music_vocoder")
    np.testing.assert_array_equal(stored(codec, heard), expected)


def test_the_mel_scale_is_the_vocoder_s(codec: Path, song: bytes) -> None:
    heard = song[: 40 * FRAME * 4]
    expected = stored(codec, heard)
    config = codec / "music_vocoder" / "config.json"
    config.write_text(config.read_text().replace('"f_max": 16000', '"f_max": 15000'))
    assert not np.array_equal(stored(codec, heard), expected)


def test_the_fingerprint_follows_the_weights_and_not_the_folder(codec: Path, checkpoint: Path) -> None:
    before = dag_of(codec).fingerprints["latents"]
    assert dag_of(checkpoint).fingerprints["latents"] == before
    (codec / "music_vocoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"never read")
    assert dag_of(codec).fingerprints["latents"] == before
    name = stage(codec).model
    weights = load_file(codec / WEIGHTS)
    weights["encoder.conv_in.weight"][0, 0, 0, 0] += 0.5
    save_file(weights, codec / WEIGHTS)
    assert dag_of(codec).fingerprints["latents"] != before
    assert name.startswith("music_dcae_f8c8@")
    assert stage(codec).model != name


class TestAFolderThatIsNoCodec:
    def test_none_given(self) -> None:
        with pytest.raises(DagError, match=r"'latents': parameter codec: .*give --set latents.codec=\.\.\."):
            dag_of(None)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DagError, match=rf"'latents': no such file {tmp_path}/music_dcae_f8c8/config.json"):
            dag_of(tmp_path)

    def test_no_weights(self, codec: Path) -> None:
        (codec / WEIGHTS).rename(codec / "music_dcae_f8c8" / "diffusion_pytorch_model.bin")
        with pytest.raises(DagError, match=f"'latents': no such file {codec / WEIGHTS}"):
            dag_of(codec)

    def test_a_weight_is_missing(self, codec: Path) -> None:
        weights = load_file(codec / WEIGHTS)
        del weights["encoder.conv_in.weight"]
        save_file(weights, codec / WEIGHTS)
        with pytest.raises(ValueError, match=r"do not match: missing keys encoder.conv_in.weight"):
            stage(codec)

    def test_a_weight_is_no_number(self, codec: Path) -> None:
        weights = load_file(codec / WEIGHTS)
        weights["encoder.conv_in.bias"][0] = float("nan")
        save_file(weights, codec / WEIGHTS)
        with pytest.raises(ValueError, match="NaN"):
            stage(codec)

    def test_latents_of_other_channels(self, codec: Path) -> None:
        config = {**AutoencoderDC.load_config(codec / "music_dcae_f8c8"), "latent_channels": 4}
        AutoencoderDC.from_config(config).save_pretrained(codec / "music_dcae_f8c8")
        with pytest.raises(ValueError, match="latents of 4 channels and 16 bins, expected 8 and 16"):
            stage(codec)
