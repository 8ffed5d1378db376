"""`songmill doctor`: what it finds where something is really missing, damaged or too small, and that it is quick."""

import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import dedent

import pytest

from pipeline.doctor import installation, machine
from pipeline.doctor.findings import Finding
from pipeline.doctor.models import models
from pipeline.execution.cluster import _OBJECT_STORE_BYTES
from pipeline.models.store import ModelStore
from tests.support.command import asked, environment, songmill
from tests.support.places import ROOT

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "total available")


def told(*arguments: object, code: int = 0, **env: str) -> dict[str, Finding]:
    """What `songmill doctor --json` finds, by name; in a process of its own where the environment is to be another."""
    command = ("doctor", "--json", *arguments)
    report = json.loads(songmill(*command, code=code, **env)[0] if env else asked(*command, code=code))
    findings = [Finding.model_validate(finding) for finding in report["findings"]]
    assert report["can_run"] == (code == 0) == all(finding.state != "problem" for finding in findings)
    assert all(bool(finding.fix) == (finding.state != "ok") for finding in findings)
    return {finding.name: finding for finding in findings}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor starts none, and says what it would do about one that is named."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def hidden(tmp_path: Path) -> str:
    """PYTHONPATH under which Python cannot find the packages that $HIDDEN names."""
    (tmp_path / "sitecustomize.py").write_text(
        dedent(
            """
            import importlib.machinery, os
            found = importlib.machinery.PathFinder.find_spec
            hidden = os.environ["HIDDEN"].split(",")
            def find_spec(name, path=None, target=None):
                return None if name.partition(".")[0] in hidden else found(name, path, target)
            importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
            """
        )
    )
    return os.pathsep.join([str(tmp_path), str(ROOT)])


@pytest.mark.models
def test_all_is_well_where_the_small_profile_runs_and_nothing_heavy_is_imported():
    script = "import sys; from pipeline.cli import app; app(['doctor'], standalone_mode=False); " + (
        "print(*{'torch', 'ray', 'essentia', 'numba'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "The profile small can run here" in done.stdout
    assert done.stderr.split() == []
    for line in (f"songmill {version('songmill')}", f"essentia {version('essentia')} (for rhythm, key)", "148 MB"):
        assert line in done.stdout


def test_a_library_that_is_away_and_an_empty_model_store_come_with_their_commands(hidden: str, tmp_path: Path):
    found = told(code=1, PYTHONPATH=hidden, HIDDEN="essentia,gradio", SONGMILL_MODELS=str(tmp_path / "empty"))
    assert found["extra essentia"].state == "problem"
    assert "pip install 'songmill[essentia]'" in found["extra essentia"].fix
    assert found["extra ui"].state == "ok"  # no stage wants it
    missing = [finding for name, finding in found.items() if name.startswith("model ")]
    assert len(missing) == 6
    assert all(finding.state == "problem" for finding in missing)
    assert found["model yamnet"].fix == "songmill models pull yamnet"


def test_the_full_profile_wants_models_a_gpu_and_a_server_that_captions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = told("--profile", "full", code=1)
    assert found["model htdemucs"].fix == "songmill models pull htdemucs --from FOLDER"
    assert found["extra separation"].state == "ok"
    assert found["server of caption"].state == "problem"
    assert "vocals 0.2" in found["GPU"].found
    assert "resources.gpus={aesthetics: 0, vocals: 0" in found["GPU"].fix


@pytest.mark.models  # without them no run is well
def test_a_cluster_is_asked_whether_a_run_can_join_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ray(*arguments: object, code: int = 0, address: str = "") -> Finding:
        monkeypatch.setenv("RAY_ADDRESS", address)
        return told(*arguments, code=code)["Ray"]

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    gone = ray(code=1, address=address)
    assert f"no Ray cluster answers at {address}: Connection refused" in gone.found
    assert "unset RAY_ADDRESS" in gone.fix
    config = tmp_path / "run.yaml"
    config.write_text(f"resources: {{ray_address: '{address}'}}\n")
    assert address in ray("--config", config, code=1).found
    assert "Ray Client and the job server are not supported" in ray(code=1, address=f"ray://{address}").found
    assert "that is not HOST:PORT" in ray(code=1, address="head:many").found
    assert "a run starts it on this machine" in ray().found


def test_a_configuration_that_is_no_configuration_is_a_usage_problem(tmp_path: Path):
    config = tmp_path / "run.yaml"
    config.write_text("stages: {decode: {}, key: {pitch: 440}}\n")
    assert "parameter pitch" in asked("doctor", "--config", config, code=1)
    config.write_text("nonsense: 1\n")
    assert "nonsense" in asked("doctor", "--config", config, code=2)


@pytest.mark.models
class TestModels:
    @pytest.fixture
    def store(self, tmp_path: Path) -> ModelStore:
        """A store with a copy of one small model."""
        real = ModelStore()
        store = ModelStore(tmp_path)
        store.pull("musicnn-mtt", source=real.pull("musicnn-mtt").path)
        return store

    def seen(self, store: ModelStore) -> Finding:
        (finding,) = models(["musicnn-mtt"], store)
        return finding

    def test_a_model_that_nobody_knows(self):
        (finding,) = models(["whisper-huge"], ModelStore())
        assert finding.state == "problem"
        assert "no model named 'whisper-huge'" in finding.found

    def test_damage_is_seen_without_hashing(self, store: ModelStore, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("pipeline.models.store.check_all", None)  # hashes files
        assert self.seen(store).state == "ok"
        file = max(store.resolve("musicnn-mtt").path.iterdir(), key=lambda path: path.stat().st_size)
        os.utime(file, (1, 1))
        assert self.seen(store).state == "warning"
        assert self.seen(store).fix == "songmill models verify musicnn-mtt"
        with file.open("ab") as longer:
            longer.write(b"!")
        assert "bytes instead of" in self.seen(store).found
        file.unlink()
        assert "is gone" in self.seen(store).found
        assert self.seen(store).state == "problem"


class TestMachine:
    def found(self, *, workers: int | None = None, missing_bytes: int = 0) -> dict[str, Finding]:
        return {f.name: f for f in machine.machine(workers, Path("/nowhere/models"), missing_bytes)}

    def test_little_memory_means_fewer_workers_and_too_little_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path):
        monkeypatch.setattr(machine, "_CGROUP", tmp_path)
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: Memory(64e9, 60e9))
        assert self.found(workers=8)["memory"].state == "ok"
        (tmp_path / "memory.max").write_text("5000000000\n")
        (tmp_path / "memory.current").write_text("1000000000\n")
        little = self.found(workers=8)["memory"]
        assert (little.state, little.fix) == ("warning", "--set resources.workers=2")
        assert "4.0 GB free of 5.0 GB" in little.found
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: Memory(2e9, 1e9))
        assert self.found(workers=1)["memory"].state == "problem"

    def test_a_container_with_fewer_cores_than_the_machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr(machine, "_CGROUP", tmp_path)
        monkeypatch.setattr(machine, "_core_count", lambda: 64)
        (tmp_path / "cpu.max").write_text("max 100000\n")
        assert self.found()["CPU cores"].state == "ok"
        (tmp_path / "cpu.max").write_text("250000 100000\n")
        assert self.found()["CPU cores"].fix == "--set resources.workers=2"
        assert self.found(workers=2)["CPU cores"].state == "ok"

    def test_disks_that_are_full_for_models_for_datasets_and_for_ray(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(100e9, 97e9, 3e9))
        found = self.found(missing_bytes=4_000_000_000)
        assert found["disk for models"].state == "problem"
        assert "3.0 GB free at /nowhere/models, 4.0 GB are needed" in found["disk for models"].found
        assert found["disk for datasets"].state == "ok"
        assert (found["disk for Ray"].state, "RAY_TMPDIR" in found["disk for Ray"].fix) == ("warning", True)

    def test_folders_that_cannot_be_written_to(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(machine.os, "access", lambda *_: False)
        assert self.found()["disk for models"].state == "ok"  # nothing has to be pulled
        assert self.found(missing_bytes=1)["disk for models"].fix == "set SONGMILL_MODELS to another folder"
        assert "cannot be written to" in self.found()["disk for datasets"].found

    def test_shared_memory_and_open_files_of_a_small_container(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64e6, 0, 64e6))
        monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (1024, 2048))
        found = self.found()
        assert "--shm-size" in found["shared memory"].fix
        assert "nofile=4096" in found["open files"].fix
        assert machine._OBJECT_STORE_BYTES == _OBJECT_STORE_BYTES

    def test_a_gpu_that_the_driver_lists_and_torch_does_not_see(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        assert machine.gpus({}, None).state == "ok"
        blind = machine.gpus({"vocals": 0.2}, None)
        assert blind.state == "problem"
        assert "nvidia-smi lists NVIDIA H200, 143771 MiB; torch" in blind.found
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        assert machine.gpus({"vocals": 0.2}, None).state == "ok"
        assert machine.gpus({"vocals": 0.2}, "head:6379").state == "ok"  # the cluster's are its own business


class TestInstallation:
    @pytest.fixture
    def versions(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
        """Versions that packages are made to have; None of one that is not there."""
        changed: dict[str, str | None] = {}

        def pretended(name: str) -> str:
            if changed.get(name, "") is None:
                raise PackageNotFoundError(name)
            return changed.get(name) or version(name)

        monkeypatch.setattr(installation, "version", pretended)
        return changed

    def found(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in installation.installation({})}

    def test_a_dependency_that_is_too_old_or_away(self, versions: dict[str, str | None]):
        assert self.found()["dependencies"].state == "ok"
        versions |= {"numpy": "1.26.4", "mutagen": None}
        broken = self.found()["dependencies"]
        assert broken.state == "problem"
        assert "numpy 1.26.4 is not <3,>=2.4" in broken.found
        assert "mutagen is not installed" in broken.found

    def test_another_python(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(installation.platform, "python_version", lambda: "3.12.1")
        assert self.found()["Python"].state == "problem"
