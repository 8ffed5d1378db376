"""The documentation is true: its commands run, its options exist, its paths and links lead somewhere.

A fenced block is run unless a comment before it says why not. One marked "parsed, not run" goes through the command
line and its configuration up to where the expensive work would begin. Every block has its own copy of a small world.
"""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_addition, build_config
from pipeline.planning.plan import draft_dag
from schemas.config import CurateConfig, DedupConfig, InputConfig, ResourceConfig
from schemas.files import file_digest
from schemas.storage.options import StorageOptions
from stages.registry import ENGINES, stage_class
from tests.support.command_tree import command_tree, unknown_words
from tests.support.markdown import Block, Page, pages
from tests.support.places import DATA, ROOT
from tests.support.tiny_checkpoint import build
from training.dit.previews import PreviewsConfig
from training.run.optimizer import OptimizerConfig

PAGES = pages()
BLOCKS = [block for page in PAGES for block in page.blocks]
LANGUAGES = {"sh", "console", "python", "yaml", "text"}
CODE = [
    file
    for folder in ("schemas", "stages", "training", "pipeline", "tests", "benchmarks")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".yaml", ".md")
]
# A path of this repository; what follows it is the sentence's.
PATH = re.compile(r"(?<![\w./-])(?:schemas|stages|training|pipeline|tests|benchmarks|docs|deploy|\.ci)/[\w./-]*[\w/]")
TARGETS = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LYRICS = {"id": "a", "title": "Static", "artist": "X", "language": "en", "text": "No more shadows", "license": "MIT"}
FILES = {
    "run.yaml": "{input: songs/, output: dataset, stages: [decode, quality]}",
    "song.txt": "[verse]\nStatic in the air",
    "song.wav": "only named",
    "encoder/config.json": "only hashed",
    "encoder/diffusion_pytorch_model.safetensors": "only hashed",
    "lyrics.index/index.json": "only hashed",
    "mirror/model.bin": "never read",
}
SECTIONS = {
    **{"resources": ResourceConfig, "dedup": DedupConfig, "input": InputConfig, "storage": StorageOptions},
    **{"samples": PreviewsConfig, "optimizer": OptimizerConfig},
}
SETTINGS = {"checkpoint": "CKPT", "prompt": ["folk"]}  # of an earlier song
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documentation names: songs, a dataset and an older one, lyrics, a checkpoint."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(DATA / "dataset_of_2026_11", folder, dirs_exist_ok=True)
    name_an_artist(folder / "dataset")
    shutil.copytree(folder / "dataset", folder / "dataset-before")
    pq.write_table(pa.Table.from_pylist([LYRICS]), folder / "lyrics.parquet")
    build(folder / "CKPT")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def name_an_artist(dataset: Path) -> None:
    """Let the first kept song be by X."""
    (shard,) = (dataset / "shards").glob("*.parquet")
    table = pq.read_table(shard)
    place, artists = table.schema.get_field_index("artist"), pa.array(["X", *[None] * (table.num_rows - 1)])
    pq.write_table(table.set_column(place, table.schema.field(place), artists), shard)
    for record in (dataset / "_songmill/commits").glob("*.json"):
        commit = json.loads(record.read_text())
        commit["files"] = {name: file_digest(dataset / name) for name in commit["files"]}
        record.write_text(json.dumps(commit))


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: Patch) -> Path:
    """The current folder of a block: a copy of the world."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_work(monkeypatch: Patch) -> None:
    """Commands end where their work would begin, with exit code 0 if everything up to there is right."""

    def stop(*_: object, **__: object) -> None:
        raise typer.Exit

    def check_plan(config: CurateConfig, store: ModelStore, **_: object) -> None:
        draft_dag(config, store)
        raise typer.Exit

    def check_features(dataset: str, stages: list[str], overrides: list[str], *_: object, **__: object) -> None:
        assert (Path(dataset) / "_songmill/plan.json").is_file()
        build_addition(dataset, "small", {}, add=stages, overrides=overrides)
        raise typer.Exit

    monkeypatch.setattr("pipeline.curation.curate.curate", check_plan)
    monkeypatch.setattr("pipeline.curation.features.add_features", check_features)
    monkeypatch.setattr("pipeline.models.store.ModelStore.pull", lambda *_: None)
    monkeypatch.setattr("pipeline.sampling.config.read_settings", lambda _: (SETTINGS, {}))
    for work in (
        "pipeline.commands.explore._serve",
        "pipeline.commands.ui._serve",
        "pipeline.curation.pilot.run_pilot",
        "pipeline.demo.input.prepare",
        "pipeline.lyrics.indexing.build_index",
        "pipeline.models.store.ModelStore.verify",
        "pipeline.sampling.config.resolve",
        "pipeline.train.autoencoder.prepare",
        "pipeline.train.dit.prepare",
        "pipeline.train.speaker.prepare",
        "pipeline.lyrics.corpus.lyric_lines",
        "stages.matching.library.LyricLibrary.open",
        "training.run.run_folder.RunFolder",
    ):
        monkeypatch.setattr(work, stop)


def run(words: list[str]) -> None:
    """A command line, which must end well."""
    program, *arguments = words
    if Path(program).name == "songmill":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
    elif program == "make":
        assert set(arguments) <= TARGETS, words
    else:
        assert Path(program).name == "python", f"{shlex.join(words)}: mark the block as not run"
        assert arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1]), words


def blocks(*languages: str, mark: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages and block.mark == mark]
    return pytest.mark.parametrize("block", chosen, ids=str)


@pytest.mark.models
@pytest.mark.ray  # `doctor` looks for a cluster
@blocks("sh", mark="")
def test_commands_run(block: Block, here: Path):
    for words in block.commands:
        assert Path(words[0]).name == "songmill", f"{shlex.join(words)}: mark the block as not run"
        run(words)


@pytest.mark.models
@pytest.mark.ray  # `doctor` looks for a cluster
@blocks("sh", mark="parsed, not run")
def test_commands_are_right_up_to_where_their_work_begins(block: Block, here: Path, without_work: None):
    for words in block.commands:
        run(words)


@blocks("python", mark="")
def test_python_runs(block: Block, here: Path):
    exec(compile(block.text, str(block), "exec"), {"__name__": "documentation"})


@blocks("yaml", mark="")
def test_configurations_can_be_planned(block: Block, here: Path):
    (here / "run.yaml").write_text(block.text)
    draft_dag(build_config(file=here / "run.yaml"), ModelStore())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.file.name)
class TestPage:
    def test_every_block_is_run_or_says_why_not(self, page: Page):
        for block in page.blocks:
            assert block.language in LANGUAGES, f"{block}: not one of {LANGUAGES}"
            assert not block.mark or block.reason, f"{block}: the comment gives no reason"
            assert block.mark != "parsed, not run" or block.language == "sh", f"{block}: nothing parses this"
            if block.language == "text":
                hidden = [line for line in block.text.splitlines() if re.match(r"\S*(songmill|make|python) ", line)]
                assert not hidden, f"{block}: a command in a block of text"
        assert not re.search(r"\n\n {4}(?! *[-*\d])\S", page.prose), f"{page.file}: an indented block is never run"
        fences = len(re.findall(r"^ *```", page.text, re.MULTILINE))
        assert fences == 2 * len([*page.blocks]), f"{page.file}: a fence that does not close"

    def test_commands_and_options_exist(self, page: Page):
        spans = [words for span in page.spans if Path((words := span.split())[0]).name == "songmill"]
        shown = [words for block in page.blocks for words in block.commands if Path(words[0]).name == "songmill"]
        for _, *words in [*spans, *shown]:
            assert not (unknown := unknown_words(words)), f"{page.file.name}: songmill {unknown} in {words}"
        options = {span.split()[0].partition("=")[0] for span in page.spans if span.startswith("-")}
        assert options <= set().union(*command_tree().values()), page.file.name

    def test_stages_parameters_and_fields_exist(self, page: Page):
        for span in page.spans:
            found = re.fullmatch(r"(?:--set )?([a-z_]+)\.([a-z_]+)(=\S+)?", span)
            if found and found[1] != "self" and found[2] not in ("txt", "lrc", "json", "jsonl", "yaml", "toml"):
                assert is_known(*found.groups()), f"{page.file.name}: {span}"

    def test_paths_exist(self, page: Page):
        for path in PATH.findall(page.text):
            assert (ROOT / path).exists(), f"{page.file.name}: {path}"
        for name in (span for span in page.spans if re.fullmatch(r"\w+\.py", span)):
            assert any(file.name == name for file in CODE), f"{page.file.name}: {name}"

    def test_links_lead_somewhere(self, page: Page):
        for link in page.links:
            if "://" not in link:
                path, _, anchor = link.partition("#")
                target = (page.file.parent / path) if path else page.file
                assert target.exists(), f"{page.file.name}: {link}"
                assert not anchor or anchor in Page(target).anchors, f"{page.file.name}: {link}"

    def test_targets_modules_and_variables_exist(self, page: Page):
        commands = [words for block in page.blocks for words in block.commands]
        for words in (*commands, *(span.split() for span in page.spans)):
            assert words[0] != "make" or TARGETS.issuperset(words[1:]), f"{page.file.name}: {words}"
        for module in re.findall(r"python -m ([\w.]+)", page.text):
            assert importlib.util.find_spec(module), f"{page.file.name}: {module}"
        code = "\n".join(file.read_text("utf-8") for file in CODE if file.suffix == ".py" and file != Path(__file__))
        for variable in re.findall(r"SONGMILL_[A-Z_]+", page.text):
            assert variable in code, f"{page.file.name}: {variable}"


def is_known(owner: str, key: str, value: str | None) -> bool:
    """Whether documentation may write `owner.key=value`: a parameter, an engine, a threshold or a field of a column."""
    if owner in SECTIONS:
        return key in SECTIONS[owner].model_fields
    if owner in ENGINES and key == "engine":
        return value is None or value[1:] in ENGINES[owner]
    engines = [stage_class(name, engine) for name, of in ENGINES.items() for engine in of]
    known = [kind for kind in engines if owner in (kind.name, kind.column)]
    keys = {name for kind in known for name in kind.Params.model_fields}
    for kind in known:
        fields = kind.type.names if pa.types.is_struct(kind.type) else []
        keys |= {*fields, *(f"min_{field}" for field in fields), *(f"max_{field}" for field in fields)}
    return key in keys


def test_a_mark_belongs_to_the_block_behind_it_alone(tmp_path: Path):
    text = "<!-- not run: a -->\n```sh\nx\n```\n<!-- parsed, not run: b -->\n```sh\ny\n```\n\n```sh\nz\n```\n"
    (tmp_path / "page.md").write_text(text)
    marks = [(block.text.strip(), block.mark, block.reason) for block in Page(tmp_path / "page.md").blocks]
    assert marks == [("x", "not run", "a"), ("y", "parsed, not run", "b"), ("z", "", "")]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


@pytest.mark.parametrize("folder", ["schemas", "stages", "training", "pipeline", "tests", "benchmarks"])
def test_paths_named_in_code_exist(folder: str):
    """In comments, docstrings, messages and tables: a file of this repository that is named is there."""
    for file in CODE:
        if file.is_relative_to(ROOT / folder):
            for path in PATH.findall(file.read_text("utf-8")):
                if Path(path).suffix in (".py", ".md", ".yaml"):
                    assert (ROOT / path).exists(), f"{file.relative_to(ROOT)}: {path}"
