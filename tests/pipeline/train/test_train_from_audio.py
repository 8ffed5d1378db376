"""Training with features that are made in every batch: the same batches, the same losses as from stored ones."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataProblem
from pipeline.ingest.identity import track_id
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from pipeline.planning.plan import make_dag, make_plan
from pipeline.train.audio_rows import AudioFeatures, features_from_audio, planned_frames
from schemas import columns
from tests.support import tiny_checkpoint
from tests.support.audio import noise, write
from tests.support.command import asked
from tests.support.toy_dataset import write_unit
from tests.support.tracks import load
from training.data import DataConfig, DatasetProblem, ShardStream, open_songs
from training.data.batch import Batch
from training.run.run_folder import RunFolder

SECONDS = {"a.flac": 3.0, "b.opus": 3.1, "c.flac": 2.0}
STAGES = ("decode", "caption", "lyric_tokens", "speaker")
FEATURES = ("latents", "ssl", "text_embedding")
_NOTHING = np.zeros((0, 2), np.float32)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As curation computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of random weights."""
    return tiny_checkpoint.build(tmp_path_factory.mktemp("checkpoint") / "random")


@pytest.fixture(scope="module")
def stored(audio: Callable[[str, str], Path], codec: Path, weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of a real song, curated in this process by the stages of a real plan."""
    weights("e5-small")
    root = tmp_path_factory.mktemp("data")
    song = load(audio("demo-music", "calm_acoustic_1.opus"), seconds=4)
    config = build_config(
        input=str(root / "songs"),
        output=root / "stored",
        only=STAGES,
        add=FEATURES,
        overrides=[
            f"latents.codec={codec}",
            "lyric_tokens.engine=tests.support.toy_stages:Words",
            "speaker.engine=tests.support.toy_stages:Voice",
            "ssl.engine=tests.support.toy_stages:Loudness",
        ],
    )
    dag = make_dag(config, ModelStore())
    rows = _identified(root / "songs", song)
    for node in dag.nodes:
        stage = node.build()
        stage.setup(node.weights)
        stage.wanted = frozenset({"pcm"} & {*stage.working})
        made = stage.run(rows)
        for name, type in {stage.column: stage.type, **{name: stage.working[name] for name in stage.wanted}}.items():
            rows = rows.append_column(name, pa.array(made[name], type))
    dataset = root / "stored"
    for unit in range(2):
        write_unit(dataset, unit, rows.drop_columns("pcm").slice(2 * unit, 2), dag.fingerprints, 2, committed=True)
    (dataset / "_songmill/plan.json").write_text(make_plan(config, dag).model_dump_json())
    return dataset


def _identified(folder: Path, song: np.ndarray) -> pa.Table:
    folder.mkdir()
    rows = []
    for name, seconds in SECONDS.items():
        rate_hz = 48_000 if name.endswith(".opus") else 44_100
        path = write(folder / name, song[:, : round(seconds * rate_hz)], rate_hz)
        rows.append({"row_id": f"row-{name}", "track_id": track_id(str(path)), "uri": str(path), "title": name})
    return pa.Table.from_pylist(rows, columns.IDENTITY)


@pytest.fixture(scope="module")
def maker(stored: Path, codec: Path) -> AudioFeatures:
    return features_from_audio(_config(stored), codec, ModelStore())


@pytest.fixture
def bare(stored: Path, tmp_path: Path) -> Path:
    """The dataset before features were added to it."""
    copy = Path(shutil.copytree(stored, tmp_path / "bare", ignore=shutil.ignore_patterns("features")))
    plan = json.loads((copy / "_songmill/plan.json").read_text())
    for feature in ("latents", "text_embedding"):  # the other one says which engine makes it
        del plan["columns"][feature]
    (copy / "_songmill/plan.json").write_text(json.dumps(plan))
    for record in (copy / "_songmill/commits").iterdir():
        files = json.loads(record.read_text())
        files["files"] = {name: digest for name, digest in files["files"].items() if name.startswith("shards/")}
        record.write_text(json.dumps(files))
    return copy


def _config(*datasets: Path, **options: object) -> DataConfig:
    return DataConfig(datasets=datasets, ssl=("loudness",), **{"batch_size": 2, "max_frames_per_song": 20, **options})


def _made(config: DataConfig, maker: AudioFeatures, workers: int = 0) -> ShardStream:
    return ShardStream(open_songs(config, maker=maker), config, workers=workers)


def _equal(one: Batch, other: Batch) -> bool:
    tensors = ("latents", "frame_mask", "text", "text_mask", "speaker", "lyrics", "lyric_mask")
    return (
        one.track_ids == other.track_ids
        and one.ssl_rate_hz == other.ssl_rate_hz
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(torch.equal(a, b) for name in one.ssl for a, b in zip(one.ssl[name], other.ssl[name], strict=True))
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_and_their_order_are_those_of_stored_features(stored, bare, maker, workers):
    read = ShardStream(open_songs(_config(stored)), _config(stored))
    made = _made(_config(bare), maker, workers)
    assert made.songs.column("frames").tolist() == read.songs.column("frames").tolist()
    assert (made.songs.widths, made.songs.models) == (read.songs.widths, read.songs.models)
    steps = len(read.plan(0)) + 1
    pairs = list(zip(islice(made, steps), islice(read, steps), strict=True))
    assert all(_equal(one, other) for one, other in pairs)
    assert pairs[0][0].latents.std() > 0.01
    assert {len(batch.ssl["loudness"][0]) for batch, _ in pairs} == {20}
    assert made.state_dict() == read.state_dict()


def test_losses_are_those_of_stored_features_and_a_run_goes_on(stored, bare, codec, tmp_path):
    settings = tmp_path / "quick.yaml"
    model = {"num_layers": 2, "inner_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2}
    data = {"batch_size": 2, "max_frames_per_song": 20, "max_lyric_ids": 32, "max_text_tokens": 16}
    quick = {"steps": 3, "log_every": 1, "save_every": 2, "validate_every": 0, "data": data}
    settings.write_text(json.dumps({**quick, "model": {**model, "lyric_hidden_size": 32}}))
    common = ("--config", settings, "--device", "cpu", "--ssl", "loudness", "--quiet")
    from_audio = (bare, "--from-audio", "--codec", codec, *common)
    asked("train", "dit", stored, "--out", tmp_path / "stored", *common)
    asked("train", "dit", *from_audio, "--out", tmp_path / "made", "--steps", 1)
    asked("train", "dit", *from_audio, "--out", tmp_path / "made")
    losses = [
        [(step["loss"], step["alignment/loudness"]) for step in RunFolder(tmp_path / run).figures()]
        for run in ("made", "stored")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_it_goes_to_other_processes_without_its_models(maker):
    sent = pickle.dumps(maker)
    assert len(sent) < 100_000
    assert isinstance(pickle.loads(sent), AudioFeatures)


def test_a_file_with_other_bytes_is_told_by_its_name_and_can_be_skipped(bare, stored, maker):
    uri = stored.parent / "songs" / "c.flac"
    content = uri.read_bytes()
    stream = _made(_config(bare, on_corrupt="skip"), maker)
    try:
        write(uri, noise(2.0))
        heard = [track for batch in islice(stream, len(stream.plan(0))) for track in batch.track_ids]
        assert len(set(heard)) == 2
        assert stream.skipped == {str(uri): "its bytes are not those that were curated"}
        uri.unlink()
        with pytest.raises(DatasetProblem, match=f"{uri} cannot be read: Unreadable: {uri}: No such file"):
            list(islice(_made(_config(bare), maker), 2))
    finally:
        uri.write_bytes(content)


class TestRefusals:
    """What cannot be made, or was made in another way, says so before anything starts."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--from-audio",), "--codec is missing: "),
            (("--codec", "."), "give --from-audio too"),
            (("--from-audio", "--codec", "."), "music_dcae_f8c8/config.json"),
            (
                ("--from-audio", "--codec", "CODEC", "--ssl", "mert"),
                "no states of mert; the stage ssl computes those of loud",
            ),
        ],
    )
    def test_usage(self, bare, codec, tmp_path, arguments, message):
        given = [codec if argument == "CODEC" else argument for argument in arguments]
        assert message in asked("train", "dit", bare, "--out", tmp_path / "run", "--quiet", *given, code=2)

    def test_without_features_a_run_says_how_to_go_on(self, bare, tmp_path):
        assert "--from-audio` does without" in asked("train", "dit", bare, "--out", tmp_path / "run", code=1)

    def test_latents_of_another_codec(self, stored, codec, tmp_path):
        other = Path(shutil.copytree(codec, tmp_path / "other"))
        config = other / "music_dcae_f8c8" / "config.json"
        config.write_text(config.read_text() + "\n")
        command = ("train", "dit", stored, "--out", tmp_path / "run", "--quiet", "--from-audio", "--codec", other)
        said = asked(*command, code=1)
        assert f"{stored} has latents of another codec: give the one they were made with as --codec, {codec}" in said

    def test_a_stage_of_another_revision(self, stored, codec, tmp_path):
        copy = Path(shutil.copytree(stored, tmp_path / "copy"))
        plan = json.loads((copy / "_songmill/plan.json").read_text())
        plan["columns"]["ssl"]["fingerprint"] = "of an earlier revision"
        (copy / "_songmill/plan.json").write_text(json.dumps(plan))
        command = ("train", "dit", copy, "--out", tmp_path / "run", "--quiet", "--from-audio", "--ssl", "loudness")
        assert f"`songmill curate --add ssl {copy}`" in asked(*command, code=1)

    def test_datasets_that_differ(self, bare, codec, tmp_path):
        copy = Path(shutil.copytree(bare, tmp_path / "copy"))
        plan = json.loads((copy / "_songmill/plan.json").read_text())
        plan["columns"]["caption"]["fingerprint"] = "of another caption"
        (copy / "_songmill/plan.json").write_text(json.dumps(plan))
        config = _config(bare, copy)
        with pytest.raises(DataProblem, match="make text_embedding in different ways"):
            features_from_audio(config, codec, ModelStore())

    def test_a_run_does_not_go_on_with_another_codec(self, bare, maker):
        stream = _made(_config(bare), maker)
        state = stream.state_dict()
        state["order"]["models"]["latents"] = "music_dcae_f8c8@another"
        with pytest.raises(DatasetProblem, match=r"models .*@another"):
            stream.load_state_dict(state)


@given(st.sampled_from([8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000]), st.integers(0, 60_000))
def test_frames_are_known_before_decoding(rate_hz: int, samples: int) -> None:
    resampler = soxr.ResampleStream(rate_hz, 44_100, 2)
    parts = [
        resampler.resample_chunk(np.zeros((samples, 2), np.float32)),
        resampler.resample_chunk(_NOTHING, last=True),
    ]
    made = sum(map(len, parts)) if rate_hz != 44_100 else samples
    assert planned_frames({"duration_s": samples / rate_hz, "sample_rate_hz": rate_hz}) == made // 4096
