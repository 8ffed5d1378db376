"""The music autoencoder: phases, losses, runs that resume exactly, and the codec that comes of them. On real music."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.marks import set_marks
from pipeline.train.audio import DatasetAudio
from schemas.dataset import Layout
from stages import pcm
from stages.latents import Latents
from stages.nets.codec import autoencoder as spectrograms
from stages.nets.codec.codec import AUTOENCODER
from tests.support import plain_workers, tiny_checkpoint
from tests.support.audio_dataset import write_audio_dataset
from tests.support.command import asked
from tests.support.tracks import load, measure
from training.autoencoder.config import AutoencoderTrainConfig
from training.autoencoder.crops import CropOrder, spread, whole_frames
from training.autoencoder.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
)
from training.autoencoder.latent_norm import LatentNorm, fold
from training.autoencoder.model import NoSuchModel, SpectrogramAutoencoder, StereoMel, as_latents, build_model
from training.autoencoder.phases import set_phase, trained_parts
from training.autoencoder.presets import PRESETS, SIZES
from training.autoencoder.trainer import AutoencoderTrainer
from training.checkpoints.released_layout import load_codec
from training.data.recordings import Recording, UnreadableAudio, fingerprint, held_out
from training.run.provenance import tracks_of
from training.run.run_folder import RunFolder, RunProblem

SMALL = {  # 0.1 M weights
    **SIZES["tiny"],
    "encoder_block_out_channels": (12, 12, 16, 32),
    "decoder_block_out_channels": (12, 12, 16, 32),
}
SONGS = ("calm_acoustic_1", "energetic_electronic_2", "happy_electronic_1", "nostalgic_acoustic_s411")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files(audio: Callable[[str, str], Path]) -> list[Path]:
    return [audio("demo-music", f"{name}.opus") for name in SONGS]


@pytest.fixture(scope="module")
def four_songs(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audio_dataset(tmp_path_factory.mktemp("data") / "songs", files)


@pytest.fixture(scope="module")
def recordings(four_songs: Path) -> DatasetAudio:
    return DatasetAudio([str(four_songs)])


@pytest.fixture(scope="module")
def music(recordings: DatasetAudio) -> torch.Tensor:
    """Spectrograms of 1.5 s of each song."""
    parts = [recordings.read(song)[:, 400_000 : 400_000 + 16 * 4096] for song in range(len(SONGS))]
    return StereoMel()(torch.from_numpy(np.stack(parts) / np.float32(32_767)))


def _config(dataset: Path, **changes: Any) -> AutoencoderTrainConfig:
    quick = {"excerpt_s": 0.4, "batch_size": 2, "optimizer": {"lr": 1e-3, "warmup_steps": 1}}
    settings = {
        "data": {"datasets": [dataset], "validation_share": 0.3, "validation_s": 0.5, "validation_excerpts": 3},
        "model": SMALL,
        "full": {"steps": 4, **quick},
        "middle": {"steps": 3, **quick, "excerpt_s": 0.8, "batch_size": 1},
        "head": {"steps": 4, **quick},
        "adversarial": {"channels": 4, "layers": 2},
        "log_every": 1,
        "validate_every": 0,
        "save_every": 2,
    }
    return AutoencoderTrainConfig.model_validate(settings | changes)


def _begun(config: AutoencoderTrainConfig, folder: Path, report: Callable[..., None]) -> AutoencoderTrainer:
    """A run in another process, which opens the songs itself."""
    return AutoencoderTrainer(config, DatasetAudio(config.data.datasets), folder, report=report)


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def _losses(run: Path) -> list[tuple[Any, ...]]:
    kept = ("step", "loss", "gradient_norm", "adversarial", "discriminator", "validation/loss")
    return [tuple(step.get(name) for name in kept) for step in RunFolder(run).figures()]


class TestAudio:
    def test_songs_are_decoded_as_the_stages_hear_them(self, recordings: DatasetAudio, files: list[Path]) -> None:
        heard = {recording.track_id: recordings.read(i) for i, recording in enumerate(recordings.recordings)}
        assert list(heard) == sorted(heard)
        for file, uri in zip(files, map(str, files), strict=True):
            index = recordings.table["uri"].to_pylist().index(uri)
            samples = recordings.read(index)
            expected = load(file)
            assert samples.dtype == np.int16
            assert samples.shape == (2, recordings.recordings[index].samples)
            assert abs(samples.shape[1] - expected.shape[1]) <= 2
            # Another resampler than the test's: the same music, not the same bits.
            length = min(samples.shape[1], expected.shape[1])
            assert np.corrcoef(samples[0, :length], expected[0, :length])[0, 1] > 0.99

    def test_a_track_counts_once_and_conditions_choose(
        self, four_songs: Path, tmp_path: Path, files: list[Path]
    ) -> None:
        copied = shutil.copy(files[0], tmp_path / "copy.opus")
        twice = DatasetAudio([str(four_songs), str(write_audio_dataset(tmp_path / "more", [Path(copied)]))])
        assert (len(twice.recordings), twice.left_out) == (4, 1)
        assert twice.fingerprint == DatasetAudio([str(four_songs)]).fingerprint
        calm = DatasetAudio([str(four_songs)], "artist = 'calm_acoustic_1'")
        assert (calm.table["artist"].to_pylist(), calm.left_out) == (["calm_acoustic_1"], 3)
        assert calm.fingerprint == fingerprint(calm.recordings) != twice.fingerprint

    def test_songs_marked_drop_are_left_out(self, tmp_path: Path, files: list[Path]) -> None:
        dataset = write_audio_dataset(tmp_path, files)
        set_marks(Layout.at(dataset), {"row-0": "drop", "row-1": "keep"})
        audio = DatasetAudio([str(dataset)])
        assert sorted(audio.table["uri"].to_pylist()) == sorted(map(str, files[1:]))
        assert audio.left_out == 1

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its bytes are not those that were curated"),
            (lambda file: file.unlink(), "No such file"),
        ],
    )
    def test_a_file_that_is_not_what_it_was_is_named(self, files, tmp_path, spoil, told) -> None:
        file = Path(shutil.copy(files[0], tmp_path / "song.opus"))
        source = DatasetAudio([str(write_audio_dataset(tmp_path / "data", [file]))])
        spoil(file)
        with pytest.raises(UnreadableAudio, match=told) as raised:
            source.read(0)
        assert str(file) in str(raised.value)
        assert raised.value.track_id == source.recordings[0].track_id

    def test_songs_beyond_the_memory_are_decoded_again(self, four_songs: Path) -> None:
        source = DatasetAudio([str(four_songs)], cache_bytes=1)
        first = source.read(0)
        assert source.read(0) is first
        source.read(1)
        again = source.read(0)
        assert again is not first
        np.testing.assert_array_equal(again, first)


class TestExcerpts:
    @given(
        samples=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
        batch_size=st.integers(1, 5),
        per_visit=st.integers(1, 7),
        seed=st.integers(0, 3),
    )
    def test_every_song_is_visited_as_often_as_its_length_asks(self, samples, batch_size, per_visit, seed) -> None:
        length, songs = 50, [10 * number for number in range(len(samples))]
        made = [
            CropOrder(songs, samples, length=length, batch_size=batch_size, per_visit=per_visit, seed=seed)
            for _ in range(2)
        ]
        visits = [max(1, round(total / (length * per_visit))) for total in samples]
        steps = 2 * per_visit * sum(visits)
        taken = [made[0](step) for step in range(steps)]
        assert [made[1](step) for step in reversed(range(steps))] == taken[::-1]
        counts = {song: sum(place.song == song for batch in taken for place in batch) for song in songs}
        for song, total, share in zip(songs, samples, visits, strict=True):
            # Whole epochs, but for the visits that the first and the last steps cut off.
            wanted = steps * batch_size * share / sum(visits)
            assert abs(counts[song] - wanted) <= 2 * per_visit * batch_size
            starts = [place.start for batch in taken for place in batch if place.song == song]
            assert all(0 <= start <= max(0, total - length) for start in starts)

    def test_songs_change_one_after_the_other(self) -> None:
        order = CropOrder(range(50), [1000] * 50, length=100, batch_size=4, per_visit=8, seed=0)
        songs = [[place.song for place in order(step)] for step in range(40)]
        changes = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(songs)]
        assert max(changes) == 1
        assert sum(changes) >= 15

    def test_fixed_places_lie_evenly_over_all_songs(self) -> None:
        places = spread([3, 7], [1000, 100], 100, 5)
        assert [place.song for place in places] == [3, 3, 3, 7]  # the second has room for one
        assert [place.start for place in places] == [150, 450, 750, 0]

    def test_excerpts_are_whole_latent_frames(self) -> None:
        assert [whole_frames(seconds) // 4096 for seconds in (0.01, 1.0, 24.0)] == [1, 11, 258]

    def test_who_is_held_out_follows_from_the_song_alone(self) -> None:
        many = [Recording(f"{number:032x}", 1) for number in range(4000)]
        out = held_out(many, 0.2)
        assert 0.17 < out.mean() < 0.23
        assert np.array_equal(held_out(many[::7], 0.2), out[::7])
        assert not (out & ~held_out(many, 0.4)).any()


class TestTheModel:
    def test_long_songs_are_encoded_as_in_training(self, music: torch.Tensor) -> None:
        """The codec's windows and diffusers' forward pass agree on a stage without layers."""
        model = build_model(SMALL, None).eval()
        with torch.no_grad():
            whole = model.autoencoder.encoder(music[:1])
            torch.testing.assert_close(
                spectrograms.encode(model.autoencoder, music[:1], 4), whole, atol=1e-4, rtol=1e-4
            )
            decoded = spectrograms.decode(model.autoencoder, whole, 4)
            torch.testing.assert_close(decoded, model.autoencoder.decoder(whole), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("shortcut", [True, False])
    def test_folded_latents_are_the_same_and_near_unit_variance(self, music: torch.Tensor, shortcut: bool) -> None:
        torch.manual_seed(0)
        autoencoder = AutoencoderDC(**AUTOENCODER | SMALL | {"encoder_out_shortcut": shortcut})
        norm = LatentNorm(8)
        norm.follow(autoencoder.encoder(music), 1.0)
        model = SpectrogramAutoencoder(autoencoder, normalise=True)
        model.latents = norm
        model.eval()
        finished = fold(autoencoder, norm)
        assert finished.config["encoder_out_shortcut"] is False
        with torch.no_grad():
            code = model.encode(music)
            torch.testing.assert_close(finished.encoder(music), code, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(finished(music).sample, model(music), atol=1e-4, rtol=1e-4)
        latents = as_latents(code)
        assert latents.mean((0, 2, 3)).abs().max() < 1e-3
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=0.01, rtol=0)

    def test_training_normalises_as_its_use_will(self) -> None:
        norm = LatentNorm(2)
        quiet, loud = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5) + 2
        norm(quiet)
        before = norm.mean.clone()
        difference = as_latents(norm(loud)).mean() - as_latents(norm(quiet)).mean()
        assert difference > 1.5  # a batch keeps what its excerpts have in common
        assert not torch.equal(norm.mean, before)
        frozen = _copy(norm.eval())
        norm(loud)
        assert not _changed(norm, frozen)

    def test_a_linear_start_is_the_best_linear_codec(self, music: torch.Tensor) -> None:
        """As good as principal components of whole patches of 8 by 8, of which it makes them in three stages."""
        model = build_model(SMALL | {"decoder_layers_per_block": (0, 1, 2, 1)}, None)
        model.start_linear(music)
        with torch.no_grad():
            error = (model.eval()(music) - music).square().mean()
        patches = torch.nn.functional.pixel_unshuffle(music, 8).movedim(1, -1).flatten(0, 2)
        spread_out = torch.linalg.svdvals(patches - patches.mean(0)).square()
        best = spread_out[8:].sum() / music.numel()
        assert best <= error < 1.15 * best
        assert error < 0.3 * (music - music.mean((0, 1, 3), keepdim=True)).square().mean()
        latents = as_latents(model.encode(music))
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=0.01, rtol=0)

    @pytest.mark.parametrize(
        "sizes",
        [
            {"latent_channels": 8, "upsample_block_type": "interpolate"},
            {"encoder_layers_per_block": (1, 1, 1, 1)},
            {"encoder_block_out_channels": (8, 8, 16, 32), "decoder_block_out_channels": (8, 8, 16, 32)},
        ],
    )
    def test_a_layout_that_cannot_start_linear_is_refused(self, sizes: dict[str, Any], music: torch.Tensor) -> None:
        with pytest.raises(NoSuchModel, match="linear_start needs"):
            build_model(SMALL | sizes, None).start_linear(music)

    @pytest.mark.parametrize(
        "sizes",
        [
            {"no_such": 1},
            {"encoder_block_types": "EfficientViTBlock"},
            {"encoder_block_out_channels": (9, 9, 16, 32)},
            {"encoder_block_out_channels": (12, 16, 32), "encoder_layers_per_block": (0, 1, 1)},
        ],
    )
    def test_sizes_of_no_codec_are_refused(self, sizes: dict[str, Any]) -> None:
        with pytest.raises(NoSuchModel):
            build_model(SMALL | sizes, None)


class TestTheGame:
    @pytest.mark.parametrize("kind", ["hinge", "least_squares"])
    def test_both_sides_get_better_at_it(self, music: torch.Tensor, kind: str) -> None:
        torch.manual_seed(0)
        discriminator = PatchDiscriminator(2, 8, 2)
        made = torch.nn.Parameter(torch.nn.functional.avg_pool2d(music, 5, 1, 2))
        assert discriminator(music).shape == (4, 1, 32, 32)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
        first = discriminator_loss(discriminator(music), discriminator(made.detach()), kind)
        for _ in range(25):
            loss = discriminator_loss(discriminator(music), discriminator(made.detach()), kind)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.9 * first
        fooled = adversarial_loss(discriminator(made), kind)
        fooled.backward()
        with torch.no_grad():
            assert adversarial_loss(discriminator(made - 1e3 * made.grad), kind) < fooled

    def test_the_adaptive_weight_makes_gradients_equally_large(self) -> None:
        weight = torch.nn.Parameter(torch.ones(3))
        reconstruction, adversarial = (weight * 3).sum(), (weight * 0.5).sum()
        assert adaptive_weight(reconstruction, adversarial, weight) == pytest.approx(6.0, rel=1e-4)


class TestPhases:
    def test_each_phase_changes_its_parts_alone(
        self, four_songs: Path, recordings: DatasetAudio, tmp_path: Path
    ) -> None:
        trainer = AutoencoderTrainer(_config(four_songs), recordings, tmp_path)
        expected = {
            "full": lambda name: True,
            "middle": lambda name: name.startswith(
                (
                    "autoencoder.encoder.down_blocks.3.",
                    "autoencoder.encoder.conv_out",
                    "autoencoder.decoder.conv_in",
                    "autoencoder.decoder.up_blocks.3.",
                    "latents.",
                )
            ),
            "head": lambda name: name.startswith(
                ("autoencoder.decoder.up_blocks.1.", "autoencoder.decoder.norm_out", "autoencoder.decoder.conv_out")
            ),
        }
        for phase, ends in (("full", 4), ("middle", 7), ("head", 11)):
            model, judge = _copy(trainer.model), _copy(trainer.gan.discriminator)
            while trainer.step < ends:
                assert trainer.config.moment(trainer.step).name == phase
                figures = trainer.take_step()
                trainer.step += 1
                assert ("discriminator" in figures) == (phase == "head")
            assert _changed(trainer.model, model) == set(filter(expected[phase], model))
            assert bool(_changed(trainer.gan.discriminator, judge)) == (phase == "head")
        assert figures["adversarial_weight"] > 0

    def test_without_weight_there_is_no_game(self, four_songs: Path, recordings: DatasetAudio, tmp_path: Path) -> None:
        none = {"full": {}, "middle": {}, "adversarial": {"weight": 0, "channels": 4}}
        trainer = AutoencoderTrainer(_config(four_songs, **none), recordings, tmp_path)
        before = _copy(trainer.gan.discriminator)
        assert "adversarial" not in trainer.take_step()
        assert not _changed(trainer.gan.discriminator, before)

    def test_the_released_layout_has_every_part(self) -> None:
        with torch.device("meta"):
            model = SpectrogramAutoencoder(AutoencoderDC(**AUTOENCODER), normalise=False)
        shares = []
        for phase in ("full", "middle", "head"):
            parts = list(trained_parts(model, phase))
            shares.append(sum(weight.numel() for part in parts for weight in part.parameters()))
            set_phase(model, phase)
            assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == shares[-1]
        assert shares[0] > shares[1] > shares[2] > 0

    def test_steps_fall_into_their_phases(self, four_songs: Path) -> None:
        config = _config(four_songs, middle={})
        assert config.steps == 8
        moments = [(moment.name, moment.step) for moment in map(config.moment, (0, 3, 4, 7, 8))]
        assert moments == [("full", 0), ("full", 3), ("head", 0), ("head", 3), ("head", 3)]


class TestRuns:
    def test_music_not_heard_before_is_given_back(
        self, four_songs: Path, recordings: DatasetAudio, tmp_path: Path
    ) -> None:
        phase = {"excerpt_s": 0.8, "batch_size": 4, "optimizer": PRESETS["tiny"]["full"]["optimizer"]}
        pictures: dict[int, Any] = {}
        config = _config(
            four_songs,
            linear_start=True,
            full={"steps": 40, **phase},
            middle={},
            head={},
            validate_every=20,
            data={"datasets": [four_songs], "validation_share": 0.3, "validation_s": 2.0},
        )
        AutoencoderTrainer(config, recordings, tmp_path, show=pictures.__setitem__).train()
        held = [step for step in RunFolder(tmp_path).figures() if "validation/loss" in step]
        assert [step["step"] for step in held] == [20, 40] == list(pictures)
        assert held[-1]["validation/loss"] < 0.25 * held[-1]["validation/baseline"]
        assert held[-1]["validation/mel_distance_db"] < 5
        assert held[-1]["validation/latent_std"] == pytest.approx(1, abs=0.4)
        assert {picture.dtype.name for picture in pictures[40].values()} == {"uint8"}
        assert {picture.shape for picture in pictures[40].values()} == {(257, 8 * 22)}

    def test_a_run_that_was_killed_takes_the_same_steps(
        self, four_songs: Path, recordings: DatasetAudio, tmp_path: Path
    ) -> None:
        """SIGKILL somewhere after a checkpoint, with another phase before it or behind."""
        config = _config(four_songs, linear_start=True, save_every=3, validate_every=4, threads=1)
        whole = AutoencoderTrainer(config, recordings, tmp_path / "whole")
        whole.train()
        killed = tmp_path / "killed"
        plain_workers.train_until_killed(partial(_begun, config, killed), 7)
        assert len(_losses(killed)) == 7
        resumed = AutoencoderTrainer(config, recordings, killed)
        assert resumed.step == 6
        resumed.train()
        assert _losses(killed) == _losses(tmp_path / "whole")
        assert not _changed(resumed.model, _copy(whole.model))
        assert not _changed(resumed.gan.discriminator, _copy(whole.gan.discriminator))

    @pytest.fixture(scope="class")
    def whole(self, four_songs: Path, recordings: DatasetAudio, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run that nobody has stopped, through."""
        folder = tmp_path_factory.mktemp("runs") / "whole"
        AutoencoderTrainer(_config(four_songs, save_every=100), recordings, folder).train()
        return folder

    @pytest.mark.parametrize("stop", [4, 7])
    def test_a_run_may_stop_between_phases(self, four_songs, recordings, whole, tmp_path, stop) -> None:
        config = _config(four_songs, save_every=100)
        AutoencoderTrainer(config.model_copy(update={"steps": stop}), recordings, tmp_path / "halved").train()
        AutoencoderTrainer(config, recordings, tmp_path / "halved").train()
        assert _losses(tmp_path / "halved") == _losses(whole)

    def test_songs_cannot_all_be_held_out(self, four_songs: Path, recordings: DatasetAudio, tmp_path: Path) -> None:
        config = _config(four_songs, data={"datasets": [four_songs], "validation_share": 0.999})
        with pytest.raises(RunProblem, match="all songs are held out"):
            AutoencoderTrainer(config, recordings, tmp_path)

    def test_a_loss_that_is_not_finite_stops_and_lists_the_tracks(self, four_songs, recordings, tmp_path) -> None:
        trainer = AutoencoderTrainer(_config(four_songs), recordings, tmp_path)
        with torch.no_grad():
            trainer.model.last_layer.fill_(float("nan"))
        with pytest.raises(RunProblem, match="not finite"):
            trainer.train()
        [listed] = tmp_path.glob("not_finite_*.txt")
        assert len(listed.read_text().split()) == 2


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "quick.yaml"
    config = json.loads(_config(Path("x")).model_dump_json(exclude={"data", "steps", "checkpoint"}))
    data = {"validation_share": 0.3, "validation_s": 0.5, "validation_excerpts": 3}
    file.write_text(json.dumps(config | {"data": data, "linear_start": True, "validate_every": 4}))
    return file


def _trained(dataset: Path, settings: Path, out: Path, *more: object, code: int = 0) -> str:
    fixed = ("--config", settings, "--device", "cpu", "--quiet")
    return asked("train", "autoencoder", dataset, "--out", out, *fixed, *more, code=code)


class TestTheCommand:
    def test_a_codec_comes_of_it(self, four_songs: Path, settings: Path, files: list[Path], tmp_path: Path) -> None:
        run, codec = tmp_path / "run", tmp_path / "codec"
        _trained(four_songs, settings, run, "--steps", 5)
        last = json.loads(_trained(four_songs, settings, run, "--json"))
        assert last["step"] == 11
        card = (run / "README.md").read_text()
        assert "11 of 11 steps" in card
        assert f"| 11 | {last['validation/loss']:.5f} |" in card
        assert "| MIT | " in card
        events = b"".join(file.read_bytes() for file in (run / "tensorboard").iterdir())
        assert b"PNG" in events
        assert b"validation/mel_distance_db" in events

        assert str(codec) in asked("train", "export", run, "--out", codec)
        assert tracks_of(codec) == tracks_of(run) != set()
        assert sorted(path.relative_to(codec).as_posix() for path in codec.rglob("*.*")) == [
            "music_dcae_f8c8/config.json",
            f"music_dcae_f8c8/{WEIGHTS}",
            "music_vocoder/config.json",
            "trained_on.parquet",
        ]
        loaded = load_codec(codec)
        heard = pcm.encode(load(files[0], 3.0))
        latents, frames = loaded.encode(torch.from_numpy(pcm.stereo(heard).copy())[None], 44_100)
        assert latents.shape == (1, 8, 16, 33)
        assert loaded.decode(latents[..., :8]).shape == (1, 2, -(-8 * 4096 * 48_000 // 44_100))
        stage = Latents(Latents.Params(codec=codec))
        stage.setup({})
        stored = np.frombuffer(measure(stage, pcm=heard)["latents"]["data"], "<f2").reshape(-1, 8, 16)
        expected = latents[0, :, :, : int(frames)].permute(2, 0, 1)
        np.testing.assert_allclose(stored, expected, atol=1e-2, rtol=1e-2)

        config = AutoencoderTrainConfig.model_validate_json((run / "config.json").read_text())
        trained = AutoencoderTrainer(config, DatasetAudio([str(four_songs)]), run).model.eval()
        with torch.no_grad():
            waveform = torch.from_numpy(pcm.stereo(heard)[:, : 32 * 4096].copy())[None]
            spectrogram = StereoMel()(waveform)
            torch.testing.assert_close(
                loaded.encode(waveform, 44_100)[0], as_latents(trained.encode(spectrogram)), atol=1e-3, rtol=1e-3
            )
            given_back = loaded.decode_mel(as_latents(trained.encode(spectrogram)))
            torch.testing.assert_close(given_back, trained(spectrogram), atol=1e-3, rtol=1e-3)
        assert "choose a new folder" in asked("train", "export", run, "--out", codec, code=1)

    def test_a_checkpoint_s_codec_keeps_its_latents(self, four_songs: Path, settings: Path, tmp_path: Path) -> None:
        """Of a random checkpoint: only the decoder's head is trained, so that the encoder stays what it was."""
        checkpoint = tiny_checkpoint.build(tmp_path / "random")
        alone = ("--set", "model={}", "--set", "linear_start=false", "--set", "full.steps=0", "--set", "middle.steps=0")
        _trained(four_songs, settings, tmp_path / "run", "--checkpoint", checkpoint, *alone)
        voice = ("--vocoder", checkpoint)
        asked("train", "export", tmp_path / "run", "--out", tmp_path / "codec", *voice)
        before, after = load_codec(checkpoint), load_codec(tmp_path / "codec")
        assert not _changed(after.autoencoder.encoder, _copy(before.autoencoder.encoder))
        assert _changed(after.autoencoder.decoder, _copy(before.autoencoder.decoder))
        assert not _changed(after.vocoder, _copy(before.vocoder))
        assert "which takes only --step and --vocoder" in asked(
            "train", "export", tmp_path / "run", "--out", tmp_path / "x", "--average", code=2
        )

    def test_what_cannot_be_trained_on(
        self, four_songs: Path, settings: Path, files: list[Path], tmp_path: Path
    ) -> None:
        def refused(*more: object, code: int, data: Path = four_songs) -> str:
            return _trained(data, settings, tmp_path / "run", *more, code=code)

        assert "no song is left to train on: none of 4 fits" in refused("--where", "artist = 'nobody'", code=1)
        assert "--where 'nobody > 1'" in refused("--where", "nobody > 1", code=1)
        assert "is no songmill dataset" in refused(code=1, data=tmp_path)
        assert "--size: there is no huge; choose from tiny, released" in refused("--size", "huge", code=2)
        assert "--preset: there is no 8gb; choose from tiny, released" in refused("--preset", "8gb", code=2)
        assert "--set tail: there is no such setting" in refused("--set", "tail.steps=3", code=2)
        assert "did you mean head.steps?" in refused("--set", "head.step=3", code=2)
        assert "no phase has any steps" in asked("train", "autoencoder", four_songs, "--out", tmp_path / "run", code=2)
        assert "the phases have 11 steps in total" in refused("--steps", 12, code=2)
        assert "model.latent_channels must be 8" in refused("--set", "model.latent_channels=4", code=2)
        assert "--set model:" in refused("--set", "model.no_such=4", code=2)
        assert "leave out model, linear_start" in refused("--checkpoint", tmp_path, code=2)
        assert "DATASET is missing" in asked("train", "autoencoder", "--out", tmp_path / "run", code=2)
        assert "--out is missing" in asked("train", "autoencoder", four_songs, code=2)

        file = Path(shutil.copy(files[0], tmp_path / "song.opus"))
        changed = write_audio_dataset(tmp_path / "changed", [file, *files[1:]])
        file.write_bytes(b"something else")
        assert f"{file}: its bytes are not those that were curated" in refused(code=1, data=changed)

    def test_another_run_is_refused_and_what_differs_named(self, four_songs, settings, tmp_path) -> None:
        _trained(four_songs, settings, tmp_path, "--steps", 2)
        assert "head.excerpt_s: 0.4 -> 0.5" in _trained(
            four_songs, settings, tmp_path, "--set", "head.excerpt_s=0.5", code=1
        )


def test_every_preset_is_one(four_songs: Path) -> None:
    for name, preset in PRESETS.items():
        data = {**preset.get("data", {}), "datasets": [four_songs]}
        config = AutoencoderTrainConfig.model_validate({**preset, "data": data})
        assert config.steps == sum(phase.steps for _, phase in config.phases())
        if name == "released":
            assert config.steps == 140_000
            assert config.middle.excerpt_s > config.full.excerpt_s
