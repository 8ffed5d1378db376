"""The files of `deploy/` say what songmill, Ray and Kubernetes understand.

No test here has a Kubernetes, Slurm or Prometheus to ask. The Slurm script runs with stand-ins for its commands; the
RayJob is compared with what KubeRay's reference of `ray.io/v1` lists, in a short form below.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.execution import metrics
from pipeline.execution.metrics import Metrics
from pipeline.execution.run_counts import RunCounts
from pipeline.models.store import ModelStore
from pipeline.planning.plan import draft_dag
from schemas.config import CurateConfig
from tests.support.places import ROOT

DEPLOY = ROOT / "deploy"
BASH = shutil.which("bash") or "bash"
# Fields of ray.io/v1 that KubeRay 1.5.1 has and these files use; a dictionary is an object, a list of one many of them.
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "upscalingMode": str, "idleTimeoutSeconds": int},
    "headGroupSpec": {"rayStartParams": dict, "template": dict},
    "workerGroupSpecs": list,
}
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": CLUSTER,
}
Patch = pytest.MonkeyPatch


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def ray_job() -> dict[str, Any]:
    return next(document for document in documents("kuberay.yaml") if document["kind"] == "RayJob")


def groups() -> dict[str, dict[str, Any]]:
    """Head and worker groups of the RayJob, by name."""
    cluster = ray_job()["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods() -> dict[str, dict[str, Any]]:
    return {name: group["template"]["spec"] for name, group in groups().items()}


def songmill_commands(name: str) -> list[list[str]]:
    """Every `songmill` command of a file, in comments too, but for what variables hold."""
    text = (DEPLOY / name).read_text("utf-8")
    if name == "kuberay.yaml":
        return [shlex.split(ray_job()["spec"]["entrypoint"])]
    if name == "slurm.sh":
        (options,) = re.findall(r"deploy/slurm\.sh(.*)", text)
        (command,) = re.findall(r"^songmill .*(?= &$)", text, re.MULTILINE)
        assert command.endswith('"$@"')
        command = command.removesuffix('"$@"').replace('"$SONGS"', "songs").replace('"$DATASET"', "dataset")
        return [shlex.split(command + options)]
    (command,) = re.findall(r'"\S*(songmill .*)"', text)
    return [shlex.split(command)]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: Patch) -> list[CurateConfig]:
    """Configurations that `songmill curate` was about to run."""
    found: list[CurateConfig] = []

    def stop(config: CurateConfig, *_: object, **__: object) -> None:
        draft_dag(config, ModelStore(tmp_path / "models"))
        found.append(config)
        raise typer.Exit

    monkeypatch.setattr("pipeline.curation.curate.curate", stop)
    return found


@pytest.mark.parametrize("name", sorted(file.name for file in DEPLOY.glob("*.yaml")))
def test_yaml_is_read(name):
    assert all(isinstance(document, dict) for document in documents(name))


@pytest.mark.parametrize("name", ["kuberay.yaml", "ray-up.yaml", "slurm.sh"])
def test_songmill_knows_every_option_and_setting(name, planned):
    for program, *arguments in songmill_commands(name):
        assert program == "songmill"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert len(planned) == 1


class TestKubeRay:
    def test_fields_are_those_of_kuberay(self):
        job = ray_job()
        assert job["apiVersion"] == "ray.io/v1"
        check_fields(job["spec"], RAY_JOB)
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            assert group.keys() == WORKERS

    def test_ray_is_the_version_of_the_lock_file(self):
        locked = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
        assert [ray_job()["spec"]["rayClusterSpec"]["rayVersion"]] == locked

    def test_a_failed_run_starts_again_and_a_finished_one_leaves_nothing(self):
        spec = ray_job()["spec"]
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"]
        assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")

    def test_the_cluster_starts_with_a_head_that_runs_no_stage(self):
        assert groups()["head"]["rayStartParams"]["num-cpus"] == "0"
        for name, group in groups().items():
            if name != "head":
                assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"], name

    def test_the_run_waits_for_nodes_that_the_autoscaler_brings(self, planned):
        CliRunner().invoke(app, songmill_commands("kuberay.yaml")[0][1:])
        (config,) = planned
        assert config.resources.wait_for_nodes_s > 0
        assert config.resources.workers.max is None

    def test_gpus_are_of_the_gpu_group_alone(self):
        limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods().items()}
        assert [name for name, given in limits.items() if "nvidia.com/gpu" in given] == ["gpu"]
        assert groups()["gpu"]["rayStartParams"] == {"num-cpus": "0"}

    def test_workers_may_run_on_spot_nodes_and_the_head_may_not(self):
        spot = {name: [t for t in pod.get("tolerations", []) if "spot" in str(t)] for name, pod in pods().items()}
        assert not spot["head"]
        assert spot["cpu"]
        assert spot["cpu"] == spot["gpu"]

    def test_workers_have_time_to_finish_a_song_when_their_pod_is_taken_away(self):
        for name in ("cpu", "gpu"):
            pod = pods()[name]
            env = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
            waits_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < waits_s < pod["terminationGracePeriodSeconds"]

    def test_every_pod_has_the_same_image_models_and_volume(self):
        claim = next(d for d in documents("kuberay.yaml") if d["kind"] == "PersistentVolumeClaim")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for pod in pods().values():
            (container,) = pod["containers"]
            (mount,) = container["volumeMounts"]
            (volume,) = pod["volumes"]
            assert volume["name"] == mount["name"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            models = next(v["value"] for v in container["env"] if v["name"] == "SONGMILL_MODELS")
            songs, _, dataset = (word for word in songmill_commands("kuberay.yaml")[0][2:5])
            assert all(Path(path).is_relative_to(mount["mountPath"]) for path in (songs, dataset, models))
            assert container["image"] == pods()["head"]["containers"][0]["image"]
            assert pod["restartPolicy"] == "Never"  # as the autoscaler's version 2 asks

    def test_prometheus_finds_the_port_that_exports_metrics(self):
        (monitor,) = documents("podmonitor.yaml")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        (head,) = pods()["head"]["containers"]
        assert endpoint["port"] in {port["name"] for port in head["ports"]}


def check_fields(given: dict[str, Any], known: dict[str, Any]) -> None:
    """Every field has its type, and there is no other."""
    for name, value in given.items():
        assert name in known, name
        if isinstance(known[name], dict):
            check_fields(value, known[name])
        else:
            assert type(value) is known[name], name


def test_ray_up_takes_its_file():
    config = prepare_config(documents("ray-up.yaml")[0])  # checks it against Ray's schema, and fills in defaults
    validate_config(config)
    start = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert sum("ray start" in command for command in start) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in start if "ray start" in command)


STANDS_IN = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = requeue ] || printf "one\\ntwo\\nthree\\n"',
    "srun": 'echo "srun $*" >> "$LOG"',
    "python": 'echo "python" >> "$LOG"',
    "songmill": '{ printf "songmill"; printf " <%s>" "$@"; echo " $RAY_ADDRESS"; } >> "$LOG"; eval "$ACT"',
}


class TestSlurm:
    """The script, with stand-ins for the commands that it calls."""

    @pytest.fixture
    def started(self, tmp_path):
        """Starts the script; `act` is what `songmill` does."""
        for name, does in STANDS_IN.items():
            (tmp_path / name).write_text(f"#!{BASH}\n{does}\n")
            (tmp_path / name).chmod(0o755)
        slurm = {"SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "7"}
        places = {"SONGS": "/data/my songs", "DATASET": f"/data/$(touch {tmp_path}/x);`touch {tmp_path}/x`"}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        running = []

        def start(act: str, *options: str, **env: str) -> subprocess.Popen[str]:
            given = {**os.environ, **slurm, **places, "PATH": path, "LOG": str(tmp_path / "log"), "ACT": act, **env}
            words = [BASH, str(DEPLOY / "slurm.sh"), *options]
            running.append(subprocess.Popen(words, env=given, stderr=subprocess.PIPE, text=True))
            return running[-1]

        yield start
        for script in running:
            script.kill()
            script.communicate()

    @staticmethod
    def log(tmp_path: Path) -> list[str]:
        path = tmp_path / "log"
        return path.read_text().splitlines() if path.exists() else []

    def test_ray_starts_on_every_node_and_the_command_once(self, started, tmp_path):
        script = started("sleep 0.3", "--profile", "full", "--set", "a.b={c: 1}")
        _, err = script.communicate(timeout=20)
        assert script.returncode == 0, err
        ray = [line for line in self.log(tmp_path) if line.startswith("srun")]
        assert sorted(re.findall(r"--nodelist=(\w+) ray start --(head|address=one:6379)", " ".join(ray))) == [
            ("one", "head"),
            ("three", "address=one:6379"),
            ("two", "address=one:6379"),
        ]
        (command,) = (line for line in self.log(tmp_path) if line.startswith("songmill"))
        given = f"<curate> </data/my songs> <--out> </data/$(touch {tmp_path}/x);`touch {tmp_path}/x`>"
        assert command == f"songmill {given} <--profile> <full> <--set> <a.b={{c: 1}}> one:6379"
        assert not (tmp_path / "x").exists()

    def test_its_exit_code_is_the_commands(self, started, tmp_path):
        assert started("exit 3").wait(timeout=20) == 3
        assert not any("requeue" in line for line in self.log(tmp_path))

    @pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
    def test_a_run_whose_time_is_up_ends_and_goes_back_into_the_queue(self, started, tmp_path, number, requeued):
        act = 'trap \'echo ended >> "$LOG"; exit 143\' TERM; echo up >> "$LOG"; while :; do sleep 0.1; done'
        script = started(act)
        until(lambda: "up" in self.log(tmp_path))
        script.send_signal(number)
        assert script.wait(timeout=20) == 143
        assert "ended" in self.log(tmp_path)
        assert ("scontrol requeue 7" in self.log(tmp_path)) == requeued

    def test_a_folder_that_is_not_named_is_asked_for(self, started):
        script = started("", SONGS="")
        _, err = script.communicate(timeout=20)
        assert script.returncode
        assert "SONGS: set it to the folder" in err


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestGrafana:
    def test_every_metric_is_exported_with_the_labels_that_are_used(self, monkeypatch):
        text = (DEPLOY / "grafana.json").read_text("utf-8")
        exported = exported_metrics(monkeypatch)
        assert set(re.findall(r"ray_songmill_\w+", text)) == exported.keys()
        for expression in expressions():
            labels = {label for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(", ")}
            for name in re.findall(r"ray_songmill_\w+", expression):
                assert labels | {"dataset"} <= exported[name], expression

    def test_every_target_has_its_own_letter_and_every_panel_its_own_number(self):
        dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
        numbers = [panel["id"] for panel in dashboard["panels"]]
        assert len(numbers) == len({*numbers})
        for panel in dashboard["panels"]:
            letters = [target["refId"] for target in panel["targets"]]
            assert len(letters) == len({*letters})


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def exported_metrics(monkeypatch: Patch) -> dict[str, set[str]]:
    """Name as Prometheus sees it -> its labels, of all metrics of a run in which everything has happened."""
    found: dict[str, set[str]] = {}

    class Metric:
        suffix = ""

        def __init__(self, name: str, _: str, tag_keys: tuple[str, ...]) -> None:
            found[f"ray_{name}{self.suffix}"] = {*tag_keys}

        def inc(self, *_: object) -> None:
            pass

        set = inc

    class Counter(Metric):
        suffix = "_total"

    monkeypatch.setattr(metrics, "Counter", Counter)
    monkeypatch.setattr(metrics, "Gauge", Metric)
    counts = RunCounts(died=1, repeated=1, nodes_lost=["a"], queued=[1])
    counts.through["curation", "kept"] = counts.stage_rows["decode"] = 1
    counts.stage_s["decode"] = 1.0
    Metrics("dataset").look(counts)
    return found
