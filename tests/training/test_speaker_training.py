"""The speaker encoder: its network, its losses, runs that resume exactly, and the stage that uses what they make."""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.ingest.identity import track_id
from pipeline.models.store import ModelStore
from pipeline.planning.dag import DagError, build_dag
from pipeline.planning.plan import make_dag, make_plan
from pipeline.train import voices as voices_module
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.config import CurateConfig
from schemas.files import file_digest
from stages import pcm
from stages.nets.omni_scale import LiteConvolution, OmniScaleBlock, SpeakerEncoder
from stages.signal.voice_activity import RATE_HZ, voiced_segments
from stages.speaker_songmill import SpeakerSongmill
from tests.support import audio as signals
from tests.support import plain_workers
from tests.support.command import asked
from tests.support.tracks import load, measure
from training.run.optimizer import OptimizerConfig
from training.run.run_folder import RunFolder, RunProblem
from training.speaker.config import SpeakerConfig, SpeakerObjectiveConfig
from training.speaker.objective import additive_margin_softmax, speaker_losses, supervised_contrastive
from training.speaker.segment_store import SegmentStore
from training.speaker.trainer import SEGMENTS, SpeakerTrainer, pair_figures
from training.speaker.verification import area_under_curve, equal_error_rate
from training.speaker.voices import Voices

TINY = {"channels": [16, 32, 48, 64], "blocks": [1, 1, 1]}
FRAME_HZ = 100.0
WEIGHTS = "diffusion_pytorch_model.safetensors"


class TestTheNetwork:
    @pytest.mark.parametrize("sizes", [TINY, {}, {**TINY, "n_mels": 64, "parts": 4, "embedding_dim": 256}])
    def test_any_voice_becomes_a_direction(self, sizes: dict[str, Any]) -> None:
        torch.manual_seed(0)
        encoder = SpeakerEncoder(**sizes).eval()
        dim, bands = sizes.get("embedding_dim", 512), sizes.get("n_mels", 80)
        with torch.no_grad():
            for seconds in (0.25, 1.3):
                log_mel = encoder.log_mel(0.1 * torch.randn(2, int(seconds * 24_000)))
                assert log_mel.shape == (2, bands, int(seconds * FRAME_HZ))
                embeddings = encoder(log_mel)
                assert embeddings.shape == (2, dim)
                assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)

    def test_loudness_does_not_count(self) -> None:
        torch.manual_seed(0)
        encoder, voice = SpeakerEncoder(**TINY).eval(), torch.randn(1, 24_000)
        with torch.no_grad():
            loud, faint = (encoder(encoder.log_mel(gain * voice)) for gain in (0.5, 0.05))
        torch.testing.assert_close(loud, faint, atol=1e-4, rtol=0)

    def test_streams_see_as_far_as_they_are_deep(self) -> None:
        """1 to 4 Lite 3x3 convolutions: 3, 5, 7 and 9 bins, in both directions."""
        block = OmniScaleBlock(8, 16).eval()
        assert [sum(isinstance(layer, LiteConvolution) for layer in stream) for stream in block.streams] == [1, 2, 3, 4]
        for weight in block.streams.parameters():
            torch.nn.init.constant_(weight, 1.0)  # nothing cancels out and no ReLU closes
        for stream, width in zip(block.streams, (3, 5, 7, 9), strict=True):
            maps = torch.ones(1, 4, 21, 21, requires_grad=True)
            stream(maps)[0, :, 10, 10].sum().backward()
            seen = maps.grad[0].abs().sum(0) > 0
            assert (seen.any(1).sum(), seen.any(0).sum(), seen.sum()) == (width, width, width**2)

    def test_one_gate_weighs_all_streams(self) -> None:
        block = OmniScaleBlock(16, 16).eval()
        maps = torch.rand(2, 16, 6, 9)
        for layer in block.gate:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.constant_(layer.weight, 0)
                torch.nn.init.constant_(layer.bias, -1e4)
        torch.testing.assert_close(block(maps), block.expand(torch.zeros(2, 4, 6, 9)) + maps)  # all are shut

    def test_the_part_branch_hears_each_part_alone(self) -> None:
        """A change at the top of the spectrum leaves what is pooled of the lowest part as it was."""
        torch.manual_seed(0)
        encoder = SpeakerEncoder(**TINY).eval()
        pooled: list[torch.Tensor] = []
        encoder.projection.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        maps = torch.rand(1, 48, 10, 25)
        changed = maps.clone()
        changed[:, :, -1] += 1.0
        for layer in (encoder.by_parts, encoder.shared):
            layer.requires_grad_(False)
        encoder.shared = torch.nn.Identity()
        encoder.by_parts = torch.nn.Conv2d(48, 64, 1)
        for heard in (maps, changed):
            encoder.stem = _Constant(heard)
            encoder(torch.zeros(1, 80, 100).normal_())
        parts = [vector[0, 2 * 64 :].reshape(64, 5) for vector in pooled]
        same = [torch.equal(parts[0][:, part], parts[1][:, part]) for part in range(5)]
        assert same == [True, True, True, True, False]

    def test_sizes_that_leave_no_rows_for_the_parts(self) -> None:
        with pytest.raises(ValueError, match="leave 2 rows after 3 stages, fewer than 5 parts"):
            SpeakerEncoder(**TINY, n_mels=20)


class _Constant(torch.nn.Module):
    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.maps


class TestTheLosses:
    def test_the_margin_is_taken_from_the_own_class_alone(self) -> None:
        cosines, classes = torch.tensor([[0.9, 0.1], [0.2, 0.6]]), torch.tensor([0, 1])
        expected = [math.log(1 + math.exp(10 * (other - (own - 0.3)))) for own, other in ((0.9, 0.1), (0.6, 0.2))]
        loss = additive_margin_softmax(cosines, classes, margin=0.3, scale=10.0)
        assert loss.item() == pytest.approx(sum(expected) / 2)

    def test_contrast_by_hand(self) -> None:
        """Two voices of one singer at 60 degrees, one of another at 90 from the first and 30 from the second."""
        angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
        voices = torch.stack([angles.cos(), angles.sin()], dim=1)
        same, first, second = (math.exp(cosine / 0.5) for cosine in (0.5, 0.0, math.cos(math.pi / 6)))
        expected = (math.log((same + first) / same) + math.log((same + second) / same)) / 2
        loss = supervised_contrastive(voices, torch.tensor([7, 7, 3]), temperature=0.5)
        assert loss.item() == pytest.approx(expected)  # the third has nobody to be like

    def test_both_are_weighed_and_better_embeddings_cost_less(self) -> None:
        singers = torch.tensor([0, 0, 1, 1])
        config = SpeakerObjectiveConfig(classification=0.5, verification=2.0)
        good = torch.eye(2)[singers]
        mixed = torch.eye(2)[torch.tensor([0, 1, 0, 1])]
        losses, worse = (speaker_losses(embeddings, embeddings, singers, config) for embeddings in (good, mixed))
        assert losses.total.item() == pytest.approx(0.5 * losses.classification.item() + 2 * losses.verification.item())
        assert (losses.accuracy, worse.accuracy) == (1.0, 0.5)
        assert losses.classification < worse.classification
        assert losses.verification < worse.verification


class TestVerification:
    def test_by_hand(self) -> None:
        """At any threshold in 0.4..0.5 one of four same pairs is refused and one of four others accepted."""
        scores = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.2, 0.1, 0.0])
        same = np.array([True] * 4 + [False] * 4)
        assert equal_error_rate(scores, same) == pytest.approx(0.25)
        assert area_under_curve(scores, same) == pytest.approx(14 / 16)

    def test_the_ends(self) -> None:
        same = np.array([True, True, False, False])
        assert (equal_error_rate(same * 1.0, same), area_under_curve(same * 1.0, same)) == (0.0, 1.0)
        assert (equal_error_rate(-1.0 * same, same), area_under_curve(-1.0 * same, same)) == (1.0, 0.0)
        assert (equal_error_rate(0.0 * same, same), area_under_curve(0.0 * same, same)) == (0.5, 0.5)

    @pytest.mark.parametrize("seed", range(8))
    def test_as_scikit_learn_has_it(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        same = rng.random(200) < 0.3
        scores = np.round(rng.standard_normal(200) + same, int(rng.integers(3)))  # coarse ones have ties
        accepts, passes, _ = roc_curve(same, scores, drop_intermediate=False)
        along = np.linspace(0, 1, 100_001)
        expected = along[np.argmin(np.abs(np.interp(along, accepts, 1 - passes) - along))]
        assert equal_error_rate(scores, same) == pytest.approx(expected, abs=2e-4)
        assert area_under_curve(scores, same) == pytest.approx(roc_auc_score(same, scores))

    def test_pairs_of_one_song_are_told_apart_from_those_across_songs(self) -> None:
        embeddings = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]])
        figures = pair_figures(embeddings, np.array([0, 0, 0, 1]), np.array(["a", "a", "b", "c"]))
        assert figures["validation/auc"] == pytest.approx((3 + 0 + 0) / 9)
        assert figures["validation/eer_across_songs"] == 1.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random voices: 8 singers, each with a spectrum of his own, two songs each, segments of 2 to 4 s."""
    folder = tmp_path_factory.mktemp("voices")
    rng = np.random.default_rng(0)
    segments = SegmentStore(folder / SEGMENTS)
    songs = []
    for singer in range(8):
        spectrum = rng.standard_normal((80, 1))
        for song in range(2):
            name = f"{singer}-{song}"
            lengths = rng.integers(200, 400, 3 if song else 1)
            segments.add(name, "", [spectrum + 0.5 * rng.standard_normal((80, frames)) for frames in lengths])
            songs.append(segments.find(name, "", label=f"singer {singer}"))
    segments.choose([song for song in songs if song], {})
    return folder


def _config(**changes: Any) -> SpeakerConfig:
    data = {"datasets": ("none",), "singers": 4, "segments": 2, "crop_s": (0.5, 0.8), "validation_share": 0.25}
    settings = {
        "data": data | changes.pop("data", {}),
        "model": TINY,
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=2),
        "steps": 8,
        "log_every": 1,
        "validate_every": 4,
        "save_every": 4,
    }
    return SpeakerConfig.model_validate(settings | changes)


def _begun(run: Path, folder: Path) -> Path:
    """A new folder of a run with these voices."""
    folder.mkdir()
    (folder / SEGMENTS).symlink_to(run / SEGMENTS)
    return folder


def _losses(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "gradient_norm", "validation/loss", "validation/eer")
    return [tuple(step[name] for name in names if name in step) for step in RunFolder(folder).figures()]


class TestBatches:
    def _voices(self, run: Path, **changes: Any) -> Voices:
        return Voices(SegmentStore(run / SEGMENTS), _config(data=changes).data, FRAME_HZ)

    def test_follow_from_seed_and_step_alone(self, run: Path) -> None:
        voices = self._voices(run)
        again, later, other = self._voices(run).batch(3, 5), voices.batch(3, 6), voices.batch(4, 5)
        batch = voices.batch(3, 5)
        assert torch.equal(batch.log_mel, again.log_mel)
        assert batch.track_ids == again.track_ids
        assert later.track_ids != batch.track_ids != other.track_ids

    def test_have_as_many_segments_of_each_singer_from_different_songs(self, run: Path) -> None:
        batch = self._voices(run).batch(0, 0)
        singers = batch.singers.tolist()
        assert sorted(map(singers.count, set(singers))) == [2, 2, 2, 2]
        assert len(set(batch.track_ids)) == 8
        assert batch.log_mel.shape[:2] == (8, 80)
        assert 50 <= batch.log_mel.shape[2] <= 80

    def test_short_voices_begin_anew(self, run: Path) -> None:
        batch = self._voices(run, crop_s=(10.0, 10.0), tilt_db=0, masked_share=0).batch(0, 0)
        assert batch.log_mel.shape[2] == 1000
        voice = batch.log_mel[0]
        [period] = [n for n in range(200, 400) if torch.equal(voice[:, n:], voice[:, :-n])][:1]
        assert 200 <= period < 400

    def test_augmentation_tilts_and_masks_a_little(self, run: Path) -> None:
        plain = self._voices(run, tilt_db=0, masked_share=0).batch(0, 0)
        tilted = self._voices(run, tilt_db=6, masked_share=0).batch(0, 0)
        # The draws of the first segment are the same.
        tilt = (tilted.log_mel[0] - plain.log_mel[0])[:, 0]
        assert 0 < tilt.abs().max() <= 6 * math.log(10) / 20 / 2 + 1e-5
        assert torch.allclose(tilt.diff(), tilt.diff()[0].expand(79), atol=1e-5)
        masked = self._voices(run, tilt_db=0, masked_share=0.2).batch(0, 1).log_mel
        muted = [(voice == voice.flatten().mode().values).float().mean() for voice in masked]
        assert 0 < max(muted) < 0.36

    def test_singers_held_out_are_never_heard(self, run: Path) -> None:
        voices = self._voices(run)
        assert len(voices.held_out) == 2
        assert len(voices.singers) == 6
        assert not set(voices.held_out) & set(voices.singers)
        heard = {track.split("-")[0] for step in range(20) for track in voices.batch(0, step).track_ids}
        assert not heard & {singer.removeprefix("singer ") for singer in voices.held_out}
        assert {batch.track_ids[0].split("-")[0] for batch in voices.validation()} == {
            singer.removeprefix("singer ") for singer in voices.held_out
        }

    @pytest.mark.parametrize(("singers", "able", "held_out"), [(100, 9, 9), (6, 6, 4), (4, 2, 2), (3, 3, 0), (9, 1, 0)])
    def test_as_many_are_held_out_as_can_be(self, singers: int, able: int, held_out: int, tmp_path: Path) -> None:
        segments, songs = SegmentStore(tmp_path), []
        for number in range(singers):
            segments.add(f"{number}", "", [np.zeros((80, 300))] * (1 + (number < able)))
            songs.append(segments.find(f"{number}", "", label=f"singer {number}"))
        segments.choose([song for song in songs if song], {})
        data = _config().data.model_copy(update={"validation_share": 0.9})
        voices = Voices(segments, data, FRAME_HZ)
        assert len(voices.held_out) == held_out
        assert len(voices.singers) == singers - held_out

    def test_one_singer_is_not_enough(self, tmp_path: Path) -> None:
        segments = SegmentStore(tmp_path)
        segments.add("a", "", [np.zeros((80, 300))])
        segments.choose([song for song in [segments.find("a", "", label="x")] if song], {})
        with pytest.raises(RunProblem, match="1 singer to learn from: at least two"):
            Voices(segments, _config().data, FRAME_HZ)


class TestARun:
    def test_that_was_stopped_goes_on_as_if_it_was_not(self, run: Path, tmp_path: Path) -> None:
        whole = SpeakerTrainer(_config(), _begun(run, tmp_path / "whole"))
        whole.train()
        stopped = _begun(run, tmp_path / "stopped")
        SpeakerTrainer(_config(steps=4), stopped).train()
        resumed = SpeakerTrainer(_config(optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2)), stopped)
        assert resumed.step == 4
        resumed.train()
        assert _losses(stopped) == _losses(tmp_path / "whole")
        assert len(_losses(stopped)[3]) == 5  # with figures of singers held out
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, whole.model.state_dict()[name]), name

    def test_that_was_killed_takes_the_same_steps(self, run: Path, tmp_path: Path) -> None:
        config = _config(steps=12, save_every=4, threads=1)
        SpeakerTrainer(config, _begun(run, tmp_path / "whole")).train()
        killed = _begun(run, tmp_path / "killed")
        plain_workers.train_until_killed(partial(SpeakerTrainer, config, killed), 9)
        assert len(_losses(killed)) == 9
        resumed = SpeakerTrainer(config, killed)
        assert resumed.step == 8
        resumed.train()
        assert _losses(killed) == _losses(tmp_path / "whole")

    def test_goes_on_with_the_same_voices_only(self, run: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        segments = SegmentStore(folder / SEGMENTS)
        songs = []
        for name in "abc":
            segments.add(name, "", [np.random.default_rng(ord(name)).standard_normal((80, 300))] * 2)
            songs.append(segments.find(name, "", label=name))
        segments.choose(songs, {})
        SpeakerTrainer(_config(steps=2, validate_every=0), folder).train()
        segments.choose(songs[:2], {"c": "gone"})
        with pytest.raises(RunProblem, match="are not those the run was stopped with"):
            SpeakerTrainer(_config(steps=4, validate_every=0), folder)

    def test_a_damaged_voice_is_named(self, run: Path, tmp_path: Path) -> None:
        segments = SegmentStore(tmp_path)
        segments.add("a", "", [np.zeros((80, 300))])
        song = segments.find("a", "", label="x")
        assert song
        (tmp_path / song.file).write_bytes(b"PAR1 no more")
        with pytest.raises(RunProblem, match=song.file):
            segments.read(song, 0)
        assert segments.find("a", "", label="x") is None  # so it is made again


def test_learning_tells_real_voices_apart_in_recordings_not_heard(audio: Callable, tmp_path: Path) -> None:
    """Nine voices, one a language: two recordings of each to learn from, and a third, which says other things."""
    folder = audio("speech-clips", "")
    encoder = SpeakerEncoder(**TINY)
    segments, songs, unheard = SegmentStore(tmp_path / SEGMENTS), [], []
    for number, language in enumerate(sorted(path.name for path in folder.iterdir())):
        for wav in sorted((folder / language).glob("*.wav")):
            voice = _trimmed(soxr.resample(*soundfile.read(wav, dtype="float32"), 24_000))
            pieces = [voice[start : start + 36_000] for start in range(0, len(voice) - 24_000, 36_000)]
            with torch.no_grad():
                log_mels = [encoder.log_mel(torch.from_numpy(piece)[None])[0] for piece in pieces]
            if wav.stem.startswith(("pangram", "quick")):
                unheard += [(number, log_mel) for log_mel in log_mels]
                continue
            segments.add(wav.stem, "", [log_mel.numpy() for log_mel in log_mels])
            songs.append(segments.find(wav.stem, "", label=f"{number}"))
    segments.choose(songs, {})
    config = _config(
        data={"singers": 9, "segments": 3, "crop_s": (1.0, 1.5), "validation_share": 0},
        optimizer=OptimizerConfig(lr=3e-3, betas=(0.9, 0.999), warmup_steps=5, decay="cosine", clip=5.0),
        seed=1,
        steps=30,
        save_every=30,
        log_every=30,
    )
    trainer = SpeakerTrainer(config, tmp_path)
    before = _singled_out(trainer, unheard)
    trainer.train()
    assert before < 0.55  # chance is 0.5
    assert _singled_out(trainer, unheard) > 0.6


def _singled_out(trainer: SpeakerTrainer, voices: list[tuple[int, torch.Tensor]]) -> float:
    """The probability that a voice is nearer to its own singer's direction than to another's."""
    trainer.model.eval()
    with torch.no_grad():
        cosines = torch.cat([trainer.model(log_mel[None])[1] for _, log_mel in voices])
    trainer.model.train()
    own = np.eye(cosines.shape[1], dtype=bool)[[singer for singer, _ in voices]]
    return area_under_curve(cosines.numpy().ravel(), own.ravel())


class TestSegmentsOfASong:
    def test_are_the_same_parts_at_any_rate(self, audio: Callable) -> None:
        voice = load(audio("speech-clips", "en/counting.wav"))
        pause = np.zeros((2, 3 * pcm.RATE_HZ), np.float32)
        stem = pcm.encode(np.concatenate([voice, pause, np.tile(voice, 5)], axis=1))
        low, high = voiced_segments(stem, RATE_HZ), voiced_segments(stem, 24_000)
        assert len(low) == len(high) == 2
        for slow, fast in zip(low, high, strict=True):
            assert len(fast) / 24_000 == pytest.approx(len(slow) / RATE_HZ, abs=1e-3)
        assert len(low[0]) == 10 * RATE_HZ
        assert np.abs(soxr.resample(high[0], 24_000, RATE_HZ)[:160_000] - low[0]).mean() < 0.01

    def test_of_silence_are_none(self) -> None:
        assert voiced_segments(pcm.encode(signals.silence(1.0)), 24_000) == []


@pytest.fixture(scope="module")
def seven_voices(weights: Callable, audio: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `songmill curate` makes of six recordings of three voices, one that nobody names, and an instrumental."""
    weights("spleeter-2stems")
    root = tmp_path_factory.mktemp("data") / "songs"
    clips = [(language, clip) for language, names in CLIPS.items() for clip in names]
    rows = [_row(audio("speech-clips", f"{language}/{clip}.wav"), language) for language, clip in clips]
    rows += [_row(audio("speech-clips", "fr/comptage.wav"), None)]
    rows += [_row(audio("demo-music", "calm_acoustic_1.opus"), "band", has_vocals=False)]
    return _write(root, rows, {"decode": {}, "vocals": {}})


CLIPS = {
    "en": ("counting", "quick_brown_fox"),
    "ja": ("kazoeru", "pangrama"),
    "es": ("conteo", "pangrama"),
}


def _trimmed(voice: np.ndarray) -> np.ndarray:
    """Without what lies 60 dB under the loudest sample before and behind it."""
    (loud,) = np.nonzero(np.abs(voice) > 1e-3 * np.abs(voice).max())
    return voice[loud[0] : loud[-1] + 1]


def _row(path: Path, artist: str | None, has_vocals: bool = True) -> dict[str, Any]:
    name = track_id(str(path))
    return {
        "row_id": f"row-{name}",
        "track_id": name,
        "uri": str(path),
        "license": "MIT",
        "artist": artist,
        "audio": {"duration_s": soundfile.info(path).duration},
        "vocals": {"has_vocals": has_vocals, "active_ratio": 0.9 * has_vocals},
        "verdict": {"status": "kept", "attempts": 1},
    }


def _write(root: Path, rows: list[dict[str, Any]], stages: dict[str, Any]) -> Path:
    name = "shards/train-000000.parquet"
    fields = [("audio", columns.AUDIO), ("vocals", columns.VOCALS), ("verdict", columns.VERDICT)]
    (root / "shards").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([*columns.IDENTITY, *fields])), root / name)
    config = CurateConfig.model_validate({"input": {"path": "x"}, "output": root, "stages": stages})
    (root / "_songmill/commits").mkdir(parents=True)
    (root / "_songmill/plan.json").write_text(make_plan(config, make_dag(config, ModelStore())).model_dump_json())
    files = {name: file_digest(root / name)}
    states = {row["row_id"]: RowState(status="kept", track_id=row["track_id"], basis="toy") for row in rows}
    commit = Commit(unit=0, plan="toy", files=files, rows=states, timings={})
    (root / "_songmill/commits/000000.json").write_text(commit.model_dump_json())
    return root


SETTINGS = {
    "validate_every": 2,
    "save_every": 2,
    "log_every": 1,
    "data": {"crop_s": [0.5, 1.0], "validation_share": 0.3},
    "optimizer": {"warmup_steps": 2},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "quick.yaml"
    file.write_text(json.dumps(SETTINGS))
    return file


def _trained(dataset: Path, settings: Path, out: Path, *more: object, code: int = 0) -> str:
    fixed = ("--config", settings, "--size", "tiny", "--device", "cpu", "--workers", 1)
    return asked("train", "speaker", dataset, "--out", out, *fixed, *more, code=code)


class TestTheCommand:
    def test_separates_once_trains_resumes_and_exports_an_encoder_for_the_stage(
        self, seven_voices: Path, settings: Path, audio: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, out = tmp_path / "run", tmp_path / "encoder"
        separated: list[str] = []
        separate = voices_module._SongSeparator.__call__

        def counted(self: Any, song: str) -> Any:
            separated.append(song)
            if len(separated) == 4:
                raise KeyboardInterrupt
            return separate(self, song)

        monkeypatch.setattr(voices_module._SongSeparator, "__call__", counted)
        said = _trained(seven_voices, settings, run, "--steps", 2, code=130)
        assert "the same command resumes from the last song" in said
        _trained(seven_voices, settings, run, "--steps", 2, "--quiet")
        assert len(separated) == 8  # the fourth was begun twice; nobody sings in the instrumental
        assert separated[3] == separated[4]

        monkeypatch.setattr(voices_module, "DatasetAudio", None)  # a run with a checkpoint needs no song any more
        last = json.loads(_trained(seven_voices, settings, run, "--steps", 4, "--quiet", "--json"))
        assert last["step"] == 4
        assert 0 <= last["validation/eer"] <= 1

        songs = SegmentStore(run / SEGMENTS).songs()
        assert sorted(song.label for song in songs)[-6:] == ["en", "en", "es", "es", "ja", "ja"]
        unnamed = [song for song in songs if song.label not in CLIPS]
        assert [song.label for song in unnamed] == [song.track_id for song in unnamed]
        assert all(song.segments == 1 for song in songs)
        card = (run / "README.md").read_text()
        assert f"{last['validation/eer']:.4f}" in card
        assert "| MIT | 7 |" in card
        assert "told apart by `artist`" in card

        assert asked("train", "export", run, "--out", out).strip() == str(out)
        stage = _stage(out)
        row = measure(
            stage, vocal_stem=pcm.encode(load(audio("speech-clips", "en/counting.wav"))), vocals={"has_vocals": True}
        )["speaker"]
        trainer = SpeakerTrainer(SpeakerConfig.model_validate_json((run / "config.json").read_text()), run)
        exported = load_file(out / WEIGHTS)
        assert all(torch.equal(weight, exported[name]) for name, weight in trainer.encoder.state_dict().items())
        assert len(row["embedding"]) == 512
        assert "is not empty" in asked("train", "export", run, "--out", out, code=1)
        assert "which takes only --step" in asked("train", "export", run, "--out", tmp_path / "x", "--average", code=2)

    def test_a_song_that_fails_costs_a_line(self, seven_voices: Path, settings: Path, tmp_path: Path) -> None:
        rows = pq.read_table(seven_voices / "shards/train-000000.parquet").to_pylist()[:5]
        gone = tmp_path / "gone.wav"
        rows[0]["uri"] = str(gone)
        copy = _write(tmp_path / "songs", rows, {"decode": {}, "vocals": {}})
        SegmentStore(tmp_path / "run" / SEGMENTS)  # its folder
        voice = np.random.default_rng(0).standard_normal((80, 200))
        stored = tmp_path / "run" / SEGMENTS
        encoder = SpeakerEncoder(**TINY)
        recipe = voices_module._Separation.planned(str(copy), encoder, ModelStore()).recipe
        for row in rows[1:]:  # as if they had been separated
            SegmentStore(stored).add(row["track_id"], recipe, [voice])
        said = _trained(copy, settings, tmp_path / "run", "--steps", 2)
        assert "loss" in said
        failed = SegmentStore(stored).failed()
        assert list(failed) == [rows[0]["track_id"]]
        assert str(gone) in failed[rows[0]["track_id"]]
        assert str(gone) in (tmp_path / "run" / "README.md").read_text()
        none = _write(tmp_path / "none", [{**row, "uri": str(gone)} for row in rows], {"decode": {}, "vocals": {}})
        told = _trained(none, settings, tmp_path / "other", code=1)
        assert "5 songs could not be separated" in told
        assert str(gone) in told

    def test_what_cannot_be_trained_on(self, seven_voices: Path, settings: Path, tmp_path: Path) -> None:
        def refused(*more: object, code: int, data: Path = seven_voices) -> str:
            return _trained(data, settings, tmp_path / "run", *more, code=code)

        assert "at least two singers are needed" in refused("--where", "artist = 'en'", code=1)
        assert "no song for which \"artist = 'band'\" holds has vocals" in refused("--where", "artist = 'band'", code=1)
        assert "--label voice: the shards have row_id" in refused("--label", "voice", code=2)
        assert "--where 'nobody > 1'" in refused("--where", "nobody > 1", code=2)
        assert "is no songmill dataset" in refused(code=1, data=tmp_path)
        assert "--size: there is no huge; choose from tiny" in refused("--size", "huge", code=2)
        assert "--set data.crops: there is no such setting; did you mean data.crop_s?" in refused(
            "--set", "data.crops=3", code=2
        )
        assert "leave 2 rows after 3 stages" in refused("--set", "model.n_mels=20", code=2)
        assert "DATASET is missing" in asked("train", "speaker", "--out", tmp_path / "run", code=2)
        silent = _write(
            tmp_path / "silent", pq.read_table(seven_voices / "shards/train-000000.parquet").to_pylist(), {"decode": {}}
        )
        assert "curate it with the stage vocals" in refused(code=1, data=silent)
        assert not (tmp_path / "run" / SEGMENTS / "songs.parquet").exists()


@pytest.fixture(scope="module")
def random_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "random"
    torch.manual_seed(0)
    SpeakerEncoder(**TINY).save_pretrained(folder)
    return folder


def _stage(folder: Path) -> SpeakerSongmill:
    stage = SpeakerSongmill(SpeakerSongmill.Params(encoder=folder))
    stage.setup({})
    return stage


def _dag(folder: Path | None) -> Any:
    speaker = {"engine": "songmill", **({"encoder": str(folder)} if folder else {})}
    stages = {"decode": {}, "vocals": {}, "speaker": speaker}
    config = CurateConfig.model_validate({"input": {"path": "x"}, "output": "y", "stages": stages})
    return build_dag(config, {"spleeter-2stems": ModelStore().resolve("spleeter-2stems")}, {})


class TestTheStage:
    def test_averages_over_segments_with_the_encoder_of_a_random_checkpoint(
        self, random_encoder: Path, audio: Callable
    ) -> None:
        stem = pcm.encode(np.tile(load(audio("speech-clips", "en/counting.wav")), 6))
        column = measure(_stage(random_encoder), vocal_stem=stem, vocals={"has_vocals": True})["speaker"]
        assert column["model"].startswith("speaker_encoder@")
        encoder = SpeakerEncoder.from_pretrained(random_encoder).eval()
        segments = voiced_segments(stem, 24_000)
        assert len(segments) == 2
        with torch.no_grad():
            each = [encoder(encoder.log_mel(torch.from_numpy(segment)[None]))[0] for segment in segments]
        mean = torch.stack(each).mean(0)
        np.testing.assert_allclose(column["embedding"], mean / mean.norm(), atol=1e-5)
        assert len(column["embedding"]) == 512

    def test_no_vocals_no_singer_of_a_random_checkpoint(self, random_encoder: Path, audio: Callable) -> None:
        stage, voice = _stage(random_encoder), pcm.encode(load(audio("speech-clips", "en/hello_world.wav")))
        instrumental = measure(stage, vocal_stem=voice, vocals={"has_vocals": False})["speaker"]["embedding"]
        assert instrumental == [0.0] * 512
        silence = pcm.encode(signals.silence(1.0))
        assert not any(measure(stage, vocal_stem=silence, vocals={"has_vocals": True})["speaker"]["embedding"])

    def test_the_fingerprint_follows_the_weights_and_not_the_folder_of_a_random_checkpoint(
        self, random_encoder: Path, tmp_path: Path
    ) -> None:
        before, name = _dag(random_encoder).fingerprints["speaker"], _stage(random_encoder).model
        shutil.copytree(random_encoder, tmp_path, dirs_exist_ok=True)
        assert _dag(tmp_path).fingerprints["speaker"] == before
        weights = load_file(tmp_path / WEIGHTS)
        weights["projection.0.weight"][0, 0] += 1
        save_file(weights, tmp_path / WEIGHTS)
        assert _dag(tmp_path).fingerprints["speaker"] != before
        assert _stage(tmp_path).model != name

    def test_a_folder_that_is_no_encoder(self, random_encoder: Path, tmp_path: Path) -> None:
        with pytest.raises(DagError, match=r"'speaker': parameter encoder: .*give --set speaker.encoder=\.\.\."):
            _dag(None)
        with pytest.raises(DagError, match=f"'speaker': no such file {tmp_path}/config.json"):
            _dag(tmp_path)
        shutil.copytree(random_encoder, tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / WEIGHTS)
        save_file({**weights, "projection.1.bias": weights["projection.1.bias"] * torch.nan}, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match="NaN"):
            _stage(tmp_path)
        del weights["projection.1.bias"]
        save_file(weights, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=r"do not match: missing keys projection.1.bias"):
            _stage(tmp_path)
