import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.marks import set_marks
from schemas import ssl_codec
from schemas.dataset import FOOTER_SCHEMA_VERSION, Layout
from tests.support.toy_dataset import LATENT_HZ, write_dataset
from training.data import DataConfig, DatasetProblem, Epoch, ShardStream, open_songs
from training.data.batch import Batch

SONGS = 24
quickly = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def toy_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("toy") / "songs", SONGS, row_group=3)


@pytest.fixture(scope="module")
def stored(toy_songs: Path) -> dict[str, dict]:
    """The dataset read by hand: track id -> its row with all features."""
    rows: dict[str, dict] = {}
    for folder in ("shards", "features/latents", "features/ssl", "features/text_embedding"):
        for row in pq.read_table(toy_songs / folder).to_pylist():
            rows.setdefault(row["row_id"], {}).update(row)
    return {row["track_id"]: row for row in rows.values()}


def config(*datasets: Path, **options: object) -> DataConfig:
    return DataConfig(
        datasets=datasets, ssl=("whisper_base",), **{"batch_size": 4, "max_frames_per_song": 200, **options}
    )


def stream(chosen: DataConfig, **options: object) -> ShardStream:
    return ShardStream(open_songs(chosen), chosen, **options)


def equal(one: Batch, other: Batch) -> bool:
    tensors = ("latents", "frame_mask", "text", "text_mask", "speaker", "lyrics", "lyric_mask")
    return (
        one.track_ids == other.track_ids
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(torch.equal(a, b) for name in one.ssl for a, b in zip(one.ssl[name], other.ssl[name], strict=True))
    )


# --- plans

plans = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 3000), min_size=8, max_size=80),
        "batch_size": st.integers(1, 7),
        "frames": st.none() | st.integers(2584, 9000),
        "ranks": st.integers(1, 8),
        "epoch": st.integers(0, 3),
    }
)


def plan(lengths: list[int], batch_size: int, frames: int | None, ranks: int, epoch: int) -> Epoch:
    chosen = DataConfig(datasets=(Path("unread"),), batch_size=batch_size, max_frames=frames)
    return Epoch(np.array(lengths), chosen, epoch, ranks)


@given(plans)
def test_every_song_is_in_exactly_one_batch_of_an_epoch(case: dict) -> None:
    epoch = plan(**case)
    songs = [song for step in epoch.steps for batch in step for song in batch.tolist()]
    assert sorted([*songs, *epoch.left_out.tolist()]) == list(range(len(case["lengths"])))
    assert len(epoch.left_out) < case["ranks"]
    if len(epoch.left_out):
        assert all(len(batch) == 1 for step in epoch.steps for batch in step)


@given(plans)
def test_ranks_get_equally_many_batches_none_of_them_empty(case: dict) -> None:
    assert all(len(step) == case["ranks"] and all(map(len, step)) for step in plan(**case).steps)


@given(plans)
def test_no_batch_is_larger_than_asked_for(case: dict) -> None:
    lengths = np.minimum(case["lengths"], 2584)
    for step in plan(**case).steps:
        for batch in step:
            assert len(batch) <= case["batch_size"]
            assert case["frames"] is None or len(batch) * lengths[batch].max() <= case["frames"]


@given(plans)
def test_a_plan_is_a_function_of_its_arguments(case: dict) -> None:
    one, other = plan(**case), plan(**case)
    assert all(
        np.array_equal(a, b) for x, y in zip(one.steps, other.steps, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_epochs_and_seeds_shuffle_anew() -> None:
    lengths = np.random.default_rng(0).integers(500, 2500, 200)

    def batches(seed: int, epoch: int) -> set[frozenset[int]]:
        chosen = DataConfig(datasets=(Path("unread"),), seed=seed)
        return {frozenset(batch.tolist()) for step in Epoch(lengths, chosen, epoch).steps for batch in step}

    assert len(batches(0, 0) & batches(0, 1)) < 5
    assert len(batches(0, 0) & batches(1, 0)) < 5


def test_padding_of_songs_of_realistic_lengths_is_below_five_percent() -> None:
    seconds = np.random.default_rng(0).lognormal(np.log(205), 0.3, 3000).clip(20, 900)
    frames = (seconds * LATENT_HZ).astype(np.int32)
    for options in ({}, {"batch_size": 64}, {"batch_size": 100, "max_frames": 40_000}):
        epoch = Epoch(frames, DataConfig(datasets=(Path("unread"),), **options), 0, 4)
        assert 0 < epoch.padding < 0.05


def test_padding_counts_the_frames_behind_shorter_songs() -> None:
    chosen = DataConfig(datasets=(Path("unread"),), batch_size=2, bucket_width=10)
    assert Epoch(np.array([50, 100]), chosen, 0).padding == pytest.approx(0.25)


def test_fewer_songs_than_ranks_are_refused() -> None:
    with pytest.raises(DatasetProblem, match="2 songs are too few for 3 ranks"):
        Epoch(np.array([50, 60]), DataConfig(datasets=(Path("unread"),)), 0, 3)


def test_a_frame_budget_that_no_song_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="max_frames_per_song"):
        DataConfig(datasets=(Path("unread"),), max_frames=100)


# --- batches


def test_batches_hold_what_is_stored_and_nothing_behind_it(toy_songs: Path, stored: dict[str, dict]) -> None:
    songs = stream(config(toy_songs))
    seen = Counter()
    for batch in islice(songs, len(songs.plan(0))):
        seen.update(batch.track_ids)
        assert batch.seconds == pytest.approx(int(batch.frame_mask.sum()) / LATENT_HZ)
        for i, track_id in enumerate(batch.track_ids):
            row = stored[track_id]
            frames = min(row["latents"]["frames"], 200)
            assert batch.frame_mask[i].tolist() == [t < frames for t in range(batch.latents.shape[-1])]
            start = _start(batch.latents[i, :, :, :frames], row)
            assert not batch.latents[i, :, :, frames:].any()
            _check_ssl(batch.ssl["whisper_base"][i], row, start, frames)
            _check_text(batch, i, row)
            ids = row["lyric_tokens"]["ids"]
            assert batch.lyrics[i][batch.lyric_mask[i]].tolist() == ids
            assert batch.lyric_mask[i].sum() == len(ids)
            assert not batch.lyrics[i][~batch.lyric_mask[i]].any()
            assert batch.speaker[i].tolist() == row["speaker"]["embedding"]
    assert seen == Counter(stored.keys())


def _start(latents: torch.Tensor, row: dict) -> int:
    """Where in the song the batch's part begins."""
    whole = np.frombuffer(row["latents"]["data"], "<f2").reshape(-1, 8, 16).astype(np.float32)
    part = latents.permute(2, 0, 1).numpy()
    [start] = [
        start for start in range(len(whole) - len(part) + 1) if np.array_equal(whole[start : start + len(part)], part)
    ]
    return start


def _check_ssl(targets: torch.Tensor, row: dict, start: int, frames: int) -> None:
    states = row["ssl"]["whisper_base"]
    whole = ssl_codec.decode(states["scales"], states["data"], states["dim"])
    assert len(targets) in (frames, frames - 1)  # the codec rounds a song's last frame up
    np.testing.assert_array_equal(targets.numpy(), whole[start : start + frames])


def _check_text(batch: Batch, i: int, row: dict) -> None:
    own = batch.text[i][batch.text_mask[i]].numpy()
    variants = [np.frombuffer(item["data"], "<f2").reshape(-1, item["dim"]) for item in row["text_embedding"]]
    assert any(np.array_equal(own, variant) for variant in variants)
    assert batch.text_mask[i].sum() == len(own)
    assert not batch.text[i][~batch.text_mask[i]].any()


def test_native_states_are_cut_with_the_latents(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, 6, shards=1, frames=(150, 300), native_ssl=True)
    batch = next(iter(stream(config(root, max_frames_per_song=100))))
    assert batch.ssl_rate_hz == {"whisper_base": 50.0}
    wanted = 100 / LATENT_HZ * 50
    assert all(abs(len(states) - wanted) <= 1 for states in batch.ssl["whisper_base"])
    assert all(
        torch.allclose(states.norm(dim=1), torch.ones(len(states)), atol=1e-2) for states in batch.ssl["whisper_base"]
    )


def test_parts_and_caption_variants_change_from_epoch_to_epoch(toy_songs: Path) -> None:
    songs = stream(config(toy_songs, max_frames_per_song=40))
    steps = len(songs.plan(0)), len(songs.plan(1))
    batches = list(islice(songs, sum(steps)))
    first, second = _by_song(batches[: steps[0]]), _by_song(batches[steps[0] :])
    assert first.keys() == second.keys()
    assert sum(torch.equal(first[song][0], second[song][0]) for song in first) <= 3
    assert 3 <= sum(first[song][1].shape == second[song][1].shape for song in first) < SONGS


def _by_song(batches: list[Batch]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        track_id: (batch.latents[i], batch.text[i][batch.text_mask[i]])
        for batch in batches
        for i, track_id in enumerate(batch.track_ids)
    }


def test_only_the_asked_for_caption_variants_are_drawn(toy_songs: Path, stored: dict[str, dict]) -> None:
    songs = stream(config(toy_songs, text_variants=("descriptive",)))
    assert songs.songs.left_out == {"text_embedding": SONGS // 3}  # those have but a simplified caption
    for batch in islice(songs, len(songs.plan(0))):
        for i, track_id in enumerate(batch.track_ids):
            assert batch.text_mask[i].sum() == stored[track_id]["text_embedding"][1]["tokens"]


def test_texts_and_lyrics_are_cut(toy_songs: Path) -> None:
    batch = next(iter(stream(config(toy_songs, max_text_tokens=2, max_lyric_ids=5))))
    assert batch.text.shape[1] == 2
    assert batch.lyrics.shape[1] == 5


def test_a_batch_does_not_depend_on_how_songs_are_spread_over_shards(toy_songs: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path, SONGS, shards=5, row_group=2, committed=False)
    for one, two in zip(islice(stream(config(toy_songs)), 8), stream(config(other)), strict=False):
        assert equal(one, two)


# --- places in the stream


@pytest.fixture(scope="module")
def uninterrupted(toy_songs: Path) -> list[tuple[Batch, dict]]:
    songs = stream(config(toy_songs))
    return [(batch, json.loads(json.dumps(songs.state_dict()))) for batch in islice(songs, 20)]


@quickly
@given(st.integers(0, 18), st.integers(0, 3))
def test_resuming_anywhere_continues_the_sequence(
    toy_songs: Path, uninterrupted: list[tuple[Batch, dict]], stop: int, lost: int
) -> None:
    """Batches that were read after the last state was saved come again."""
    chosen = config(toy_songs)
    songs = ShardStream(_songs(toy_songs), chosen)
    list(islice(songs, lost))
    songs.load_state_dict(uninterrupted[stop][1])
    resumed = next(iter(songs))
    assert equal(resumed, uninterrupted[stop + 1][0])
    assert songs.state_dict() == uninterrupted[stop + 1][1]


_cached: dict[Path, object] = {}


def _songs(dataset: Path) -> object:
    return _cached.setdefault(dataset, open_songs(config(dataset)))


def test_worker_processes_change_nothing(toy_songs: Path, uninterrupted: list[tuple[Batch, dict]]) -> None:
    songs = stream(config(toy_songs), workers=2)
    songs.load_state_dict(uninterrupted[2][1])
    for batch, (expected, state) in zip(islice(songs, 6), uninterrupted[3:9], strict=True):
        assert equal(batch, expected)
        assert songs.state_dict() == state


def test_leaving_the_loop_loses_no_batch(toy_songs: Path, uninterrupted: list[tuple[Batch, dict]]) -> None:
    songs = stream(config(toy_songs))
    taken = [*islice(songs, 3), *islice(songs, 7)]
    assert all(equal(one, other) for one, (other, _) in zip(taken, uninterrupted[:10], strict=True))


def test_reading_leaves_the_global_generator_alone(toy_songs: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    next(iter(stream(config(toy_songs))))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_out_the_songs(toy_songs: Path, world_size: int) -> None:
    songs = _songs(toy_songs)
    taken: list[list[str]] = []
    hours = []
    for rank in range(world_size):
        own = ShardStream(songs, config(toy_songs), rank=rank, world_size=world_size)
        steps = len(own.plan(0))
        taken.append([track_id for batch in islice(own, steps) for track_id in batch.track_ids])
        hours.append(own.hours.as_dict())
    everything = [track_id for own in taken for track_id in own]
    assert len(everything) == len(set(everything)) == SONGS
    assert all(one == hours[0] for one in hours)


def test_another_world_size_or_other_songs_cannot_resume(
    toy_songs: Path, uninterrupted: list[tuple[Batch, dict]]
) -> None:
    state = uninterrupted[5][1]
    with pytest.raises(DatasetProblem, match=r"world_size \(1 -> 2\)"):
        ShardStream(_songs(toy_songs), config(toy_songs), world_size=2).load_state_dict(state)
    with pytest.raises(DatasetProblem, match="songs"):
        stream(config(toy_songs, where="license = 'CC0-1.0'")).load_state_dict(state)


def test_hours_are_those_of_the_parts_seen(toy_songs: Path, stored: dict[str, dict]) -> None:
    songs = stream(config(toy_songs))
    list(islice(songs, len(songs.plan(0))))
    expected: dict[str, Counter] = {"source": Counter(), "license": Counter(), "language": Counter()}
    for row in stored.values():
        hours = min(row["latents"]["frames"], 200) / LATENT_HZ / 3600
        expected["source"][row["source"]] += hours
        expected["license"][row["license"]] += hours
        expected["language"][(row["transcript"] or {}).get("language") or "unknown"] += hours
    for kind, hours in songs.state_dict()["hours"].items():
        assert hours == pytest.approx(dict(expected[kind]))


# --- which songs


@quickly
@given(st.floats(8000, 20000), st.sets(st.sampled_from(["CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"]), min_size=1))
def test_a_condition_equals_the_same_filter_by_hand(
    toy_songs: Path, stored: dict[str, dict], hz: float, licenses: set[str]
) -> None:
    listed = ", ".join(f"'{name}'" for name in licenses)
    expected = {
        track_id
        for track_id, row in stored.items()
        if row["quality"]["bandwidth_hz"] > hz and row["license"] in licenses
    }
    chosen = config(toy_songs, where=f"quality.bandwidth_hz > {hz} and license in ({listed})")
    if expected:
        songs = open_songs(chosen)
        assert set(songs.table["track_id"].to_pylist()) == expected
        assert songs.left_out.get("where", 0) == SONGS - len(expected)
    else:
        with pytest.raises(DatasetProblem, match="no song is left"):
            open_songs(chosen)


@pytest.mark.parametrize(
    ("where", "named"),
    [("bandwith_hz > 1", "bandwith_hz"), ("quality.bandwith_hz > 1", "bandwith_hz"), ("license in (", "syntax")],
)
def test_a_condition_that_means_nothing_is_refused_by_name(toy_songs: Path, where: str, named: str) -> None:
    with pytest.raises(DatasetProblem, match=named) as problem:
        open_songs(config(toy_songs, where=where))
    assert "quality" in str(problem.value)


def test_the_held_out_songs_stay_when_songs_are_added(tmp_path: Path) -> None:
    small = write_dataset(tmp_path / "small", 16, shards=2)
    added = write_dataset(tmp_path / "added", 24, shards=2, first_song=16)

    def parts(*datasets: Path) -> tuple[set[str], set[str]]:
        songs = open_songs(config(*datasets))
        train, held_out = (songs.part(split, 0.25).table["track_id"].to_pylist() for split in ("train", "validation"))
        return set(train), set(held_out)

    train, held_out = parts(small)
    more_train, more_held_out = parts(small, added)
    assert not train & held_out
    assert len(train | held_out) == 16
    assert train < more_train
    assert held_out < more_held_out
    assert 3 <= len(more_held_out) <= 18


def test_the_validation_split_is_one_pass_and_always_the_same(toy_songs: Path) -> None:
    songs = stream(config(toy_songs, validation_share=0.4), split="validation")
    one, other = list(songs), list(songs)
    assert [batch.track_ids for batch in one] == [batch.track_ids for batch in other]
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))
    train = stream(config(toy_songs, validation_share=0.4))
    trained = {track_id for batch in islice(train, len(train.plan(0))) for track_id in batch.track_ids}
    held_out = {track_id for batch in one for track_id in batch.track_ids}
    assert len(trained) + len(held_out) == len(trained | held_out) == SONGS


def test_songs_without_a_feature_are_left_out_and_counted(tmp_path: Path) -> None:
    nulls = {0: "latents", 4: "ssl", 5: "latents", 7: "text_embedding", 9: "speaker", 10: "lyric_tokens"}
    songs = stream(config(write_dataset(tmp_path, 12, nulls=nulls), batch_size=12))
    assert songs.songs.left_out == {"latents": 2, "ssl.whisper_base": 1, "text_embedding": 1}
    batch = next(iter(songs))
    places = {int(track_id[4:], 16): i for i, track_id in enumerate(batch.track_ids)}
    assert sorted(places) == [1, 2, 3, 6, 8, 9, 10, 11]
    assert not batch.speaker[places[9]].any()
    assert not batch.lyric_mask[places[10]].any()


def test_a_track_of_two_datasets_counts_once(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", 8, shards=1)
    two = write_dataset(tmp_path / "two", 8, shards=1, first_song=5)
    songs = open_songs(config(one, two))
    assert len(songs) == 13
    assert songs.left_out == {"duplicate": 3}


def test_songs_marked_drop_are_left_out_of_the_dataset_they_are_marked_in(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", 8, shards=2)
    two = write_dataset(tmp_path / "two", 8, shards=2, first_song=5)
    rows = [f"row-{number:016x}" for number in (0, 3, 5, 6)]
    set_marks(Layout.at(one), {rows[0]: "drop", rows[1]: "keep", rows[2]: "drop", rows[3]: "drop"}, "clicks")
    set_marks(Layout.at(two), {rows[3]: "drop", "a row that is gone": "drop"})
    songs = open_songs(config(one, two, where="right(row_id, 1) <> '1'"))
    assert songs.left_out == {"where": 1, "marked drop": 4, "duplicate": 1}
    numbers = {int(track_id[4:], 16) for track_id in songs.table["track_id"].to_pylist()}
    assert numbers == set(range(13)) - {0, 1, 6}  # 5 is dropped here and not there


def test_a_run_whose_songs_were_marked_since_is_not_resumed(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 8)
    state = stream(config(dataset)).state_dict()
    set_marks(Layout.at(dataset), {"row-0000000000000002": "keep"})
    stream(config(dataset)).load_state_dict(state)
    set_marks(Layout.at(dataset), {"row-0000000000000002": "drop"})
    with pytest.raises(DatasetProblem, match="not what the run was stopped with: songs"):
        stream(config(dataset)).load_state_dict(state)


def test_widths_and_models_are_known(toy_songs: Path) -> None:
    songs = open_songs(config(toy_songs))
    assert (songs.widths.text, songs.widths.speaker, songs.widths.ssl) == (32, 16, {"whisper_base": 12})
    assert songs.models["latents"] == "toy-latents@r1"


# --- what does not fit


def test_features_that_are_missing_are_named_with_the_command_that_adds_them(toy_songs: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path, 4, shards=1)
    (root / "features/latents/train-000000.parquet").unlink()
    with pytest.raises(DatasetProblem, match=r"has no latents: `songmill curate --add latents"):
        open_songs(config(root))
    with pytest.raises(DatasetProblem, match="no states of hubert; it has those of whisper_base"):
        open_songs(config(toy_songs).model_copy(update={"ssl": ("hubert",)}))
    with pytest.raises(DatasetProblem, match="holds no shards"):
        open_songs(config(tmp_path / "elsewhere"))


@pytest.mark.parametrize("committed", [True, False])
def test_a_feature_of_another_shard_is_refused(tmp_path: Path, committed: bool) -> None:
    root = write_dataset(tmp_path / "one", 6, shards=1, committed=committed)
    other = write_dataset(tmp_path / "other", 6, seed=1, shards=1)
    (other / "features/latents/train-000000.parquet").replace(root / "features/latents/train-000000.parquet")
    with pytest.raises(DatasetProblem, match="belongs to another shard"):
        open_songs(config(root))


def test_shards_that_were_made_in_different_ways_are_refused_with_the_difference(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", 4, shards=2)
    two = write_dataset(tmp_path / "two", 4, shards=1, first_song=4, fingerprints={"latents": "f00d" * 8})
    with pytest.raises(
        DatasetProblem, match=r"latents was made in 2 ways: latents00000 in .* and 1 more; f00df00df00d in"
    ):
        open_songs(config(one, two))


def test_latents_of_another_model_are_refused(toy_songs: Path) -> None:
    open_songs(config(toy_songs), {"latents": "toy-latents@r1"})
    with pytest.raises(DatasetProblem, match="made by toy-latents@r1, the model expects those of dcae@7"):
        open_songs(config(toy_songs), {"latents": "dcae@7"})


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, 4, shards=1, committed=False)
    shard = root / "shards/train-000000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, FOOTER_SCHEMA_VERSION: b"7"}), shard)
    with pytest.raises(DatasetProblem, match="schema version 7, this trainer reads 1"):
        open_songs(config(root))


def test_files_without_a_record_do_not_count(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, 6, shards=2)
    (root / "_songmill/commits/000001.json").unlink()
    assert len(open_songs(config(root))) == 3


@pytest.fixture
def torn(tmp_path: Path) -> Iterator[Path]:
    """A dataset of four shards: one's latents are cut short, another's have damaged pages."""
    root = write_dataset(tmp_path, 16, shards=4)
    cut, damaged = (root / f"features/latents/train-{unit:06d}.parquet" for unit in (1, 2))
    cut.write_bytes(cut.read_bytes()[:5000])
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    damaged.write_bytes(content)
    return root


def test_a_torn_file_stops_training_by_name(torn: Path) -> None:
    with pytest.raises(DatasetProblem, match=r"latents/train-000001.parquet cannot be read: .*on_corrupt"):
        open_songs(config(torn))
    songs = stream(config(torn, where="track_id >= '0000000000000008'", on_corrupt="skip"))
    stopping = ShardStream(songs.songs, config(torn))
    with pytest.raises(DatasetProblem, match=r"latents/train-000002.parquet cannot be read"):
        list(islice(stopping, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_songs_of_torn_files_are_skipped_and_the_files_listed(torn: Path, workers: int) -> None:
    songs = stream(config(torn, on_corrupt="skip", batch_size=1), workers=workers)
    steps = len(songs.plan(0))
    assert steps == 12
    batches = list(islice(songs, steps))
    assert len(batches) == steps  # every rank takes every step
    assert {Path(path).name for path in songs.skipped} == {"train-000001.parquet", "train-000002.parquet"}
    numbers = {int(track_id[4:], 16) for batch in batches for track_id in batch.track_ids}
    assert numbers == {*range(4), *range(12, 16)}
