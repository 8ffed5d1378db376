"""What the DAG refuses, in which order it runs, what its fingerprints depend on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curation.sink import UNIT
from pipeline.dataset.sketch_reader import PART
from pipeline.dataset.sketches import BANDS
from pipeline.planning.config import ConfigError, build_config
from pipeline.planning.dag import Dag, DagError, build_dag
from schemas.config import CurateConfig
from stages.registry import ENGINES
from tests.support import toy_stages


def configured(stages: dict, **options) -> CurateConfig:
    return CurateConfig.model_validate({"input": {"path": "x"}, "output": "y", "stages": stages, **options})


def refused(stages: dict, **options) -> str:
    with pytest.raises(DagError) as error:
        build_dag(configured(stages, **options), {}, {})
    return str(error.value)


def dag(stages: dict, **options) -> Dag:
    return build_dag(configured(stages, **options), {}, {})


def toy(name: str, **params) -> dict:
    return {name: {"engine": f"tests.support.toy_stages:{name.capitalize()}", **params}}


def test_a_column_that_nobody_writes_is_refused_naming_stage_and_column():
    message = refused({"decode": {}, **toy("needy")})
    assert "'needy' reads column 'unobtainium', which no stage writes" in message


def test_the_refusal_names_the_stage_to_add():
    assert "(add stage 'decode')" in refused({"key": {}})


def test_a_wrong_type_is_refused_naming_the_field():
    message = refused({"decode": {}, **toy("mistyped")})
    assert "'mistyped' reads column 'audio'" in message
    assert "'codec': it is written as string" in message


def test_two_owners_of_a_column_are_refused_naming_both():
    message = refused({"decode": {}, **toy("usurper")})
    assert "'audio' is owned by stage 'decode' and by stage 'usurper'" in message


@pytest.mark.parametrize("column", [*UNIT.names, BANDS.name, PART.name, "size", "stamp", "timing", "verdict"])
def test_a_column_that_the_run_itself_keeps_is_refused(column, monkeypatch):
    monkeypatch.setattr(toy_stages.Usurper, "column", column)
    assert f"{column!r} is owned by songmill itself and by stage 'usurper'" in refused({"decode": {}, **toy("usurper")})


def test_stages_that_wait_for_each_other_are_refused():
    assert "dependency cycle between stages: ping, pong" in refused({**toy("ping"), **toy("pong")})


def test_all_problems_are_told_at_once():
    message = refused({"decode": {"limit": 3}, "nonsense": {}, **toy("needy")}, gates={"audio": {"min_length": 3}})
    assert "parameter limit" in message
    assert "no stage named 'nonsense'" in message
    assert "unobtainium" in message


def test_a_threshold_on_a_field_that_is_not_there_is_refused():
    assert "gates.audio.min_length: no such threshold" in refused({"decode": {}}, gates={"audio": {"min_length": 3}})


def test_thresholds_on_fingerprints_are_refused():
    message = refused({"decode": {}, "fingerprint": {}}, gates={"fingerprint": {"min_landmarks": 3}})
    assert "gates.fingerprint: fingerprints are compared with each other" in message


def test_a_missing_model_is_refused_with_the_command_to_run():
    config = configured({"decode": {}, "events": {}})
    with pytest.raises(DagError, match="songmill models pull yamnet"):
        build_dag(config, {}, {"yamnet": "no model yamnet; run: songmill models pull yamnet"})


@given(st.permutations(["decode", "quality", "fingerprint", "rhythm", "key"]))
def test_stages_run_after_what_they_read_in_whatever_order_they_are_configured(names):
    order = [node.name for node in dag({name: {} for name in names}).nodes]
    assert order.index("decode") < min(order.index(name) for name in names if name != "decode")


def test_the_order_of_configuration_does_not_change_fingerprints():
    names = ["decode", "quality", "fingerprint", "rhythm", "key"]
    backwards = dag({name: {} for name in reversed(names)})
    assert dag({name: {} for name in names}).fingerprints == backwards.fingerprints


def test_a_parameter_changes_the_fingerprints_of_its_stage_and_of_those_that_read_it_only():
    before = dag({"decode": {}, **toy("length"), **toy("killer", always=["x"])})
    after = dag({"decode": {"limit_s": 100}, **toy("length"), **toy("killer", always=["x"])})
    assert before.fingerprints["audio"] != after.fingerprints["audio"]
    assert before.fingerprints["length"] != after.fingerprints["length"]
    assert before.fingerprints["killer"] == after.fingerprints["killer"]


def test_thresholds_stand_outside_fingerprints():
    gated = dag({"decode": {}}, gates={"audio": {"min_duration_s": 5}})
    assert gated.fingerprints == dag({"decode": {}}).fingerprints
    assert [gate.reason for gate in gated.gates] == ["min_duration_s"]


def test_on_a_machine_without_gpus_the_curation_pass_is_one_operator():
    stages = dag({"decode": {}, "quality": {}, "fingerprint": {}, "rhythm": {}, "key": {}})
    assert [[n.name for n in operator] for operator in stages.operators] == [["decode", "rhythm", "key"]]
    assert [node.name for node in stages.scan] == ["decode", "quality", "fingerprint"]


def test_every_registered_stage_has_a_class_of_its_name_and_a_typed_column():
    from stages.registry import stage_class

    for name, engines in ENGINES.items():
        for engine in engines:
            stage = stage_class(name, engine)
            assert stage.name == name
            assert stage.type is not None
            assert stage.__doc__


class TestConfig:
    def test_a_file_overrides_the_profile_and_the_command_line_overrides_the_file(self, tmp_path: Path):
        file = tmp_path / "run.yaml"
        file.write_text("gates: {audio: {min_duration_s: 2, max_duration_s: null}}\nstages: [decode, quality]\n")
        config = build_config(file=file, input="x", output=tmp_path, overrides=["quality.min_bandwidth_hz=15000"])
        assert list(config.stages) == ["decode", "quality"]
        assert config.gates["audio"] == {"min_duration_s": 2}
        assert config.gates["quality"]["min_bandwidth_hz"] == 15000

    def test_set_tells_a_parameter_from_a_threshold(self, tmp_path: Path):
        overrides = ["decode.limit_s=60", "audio.max_duration_s=50", "resources.rows_per_shard=3"]
        config = build_config(input="x", output=tmp_path, overrides=overrides)
        assert config.stages["decode"].params == {"limit_s": 60}
        assert config.gates["audio"]["max_duration_s"] == 50
        assert config.resources.rows_per_shard == 3

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("limit_s=3", "expected stage.param=value"),
            ("decode.limt_s=3", "parameters of decode: .*limit_s"),
            ("decod.limit_s=3", "no stage or column 'decod' in this run"),
            ("decode.min_duration_s=3", "thresholds use its column: audio.min_FIELD"),
            ("qualty.min_bandwidth_hz=3", "no stage or column 'qualty'"),
            ("decode.limit_s=[", "is not a valid YAML value"),
            ("resources.rows_per_shard=none", "resources.rows_per_shard"),
        ],
    )
    def test_a_bad_override_says_what_there_is(self, override, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            build_config(input="x", output=tmp_path, overrides=[override])

    def test_a_gate_on_a_column_that_the_run_does_not_make_is_an_error(self, tmp_path: Path):
        file = tmp_path / "run.yaml"
        file.write_text("gates: {qualty: {min_bandwidth_hz: 1}}\n")
        with pytest.raises(ConfigError, match="no stage of this run writes qualty"):
            build_config(file=file, input="x", output=tmp_path)

    @pytest.mark.parametrize("url", ["s3://bucket/dataset", "gs://bucket", "az://container/a/b"])
    def test_a_dataset_is_written_to_a_bucket_by_its_url(self, url):
        reached = "storage.endpoint=http://127.0.0.1:9000"
        config = build_config(input="x", output=url, overrides=[reached, "storage.allow_http=true"])
        assert (config.output, config.storage.endpoint) == (url, "http://127.0.0.1:9000")

    def test_a_dataset_cannot_be_written_to_another_url(self):
        with pytest.raises(ConfigError, match=r"output: .*ftp://host/dataset: a dataset is a folder, or a bucket"):
            build_config(input="x", output="ftp://host/dataset")

    def test_secrets_are_no_settings(self):
        with pytest.raises(ConfigError, match=r"storage\.secret_access_key"):
            build_config(input="x", output="s3://bucket", overrides=["storage.secret_access_key=abc"])

    def test_unknown_keys_of_a_file_are_errors(self, tmp_path: Path):
        file = tmp_path / "run.yaml"
        file.write_text("imput: {path: x}\n")
        with pytest.raises(ConfigError, match="imput"):
            build_config(file=file, input="x", output=tmp_path)
