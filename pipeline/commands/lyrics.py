"""`songmill lyrics`: indexes a library of lyrics, searches it, trains a vocabulary."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.commands.exit_codes import DATA_PROBLEM, USAGE_PROBLEM, fail, guarded
from pipeline.commands.options import place
from pipeline.errors import DataProblem

app = typer.Typer(help="Lyric libraries: index and search them, train a vocabulary.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("index", epilog="Example: songmill lyrics index lyrics.parquet --out lyrics.index")
def index_command(
    library: Annotated[Path, typer.Argument(help="Parquet with id, title, artist, language, text, license.")],
    out: Annotated[Path, typer.Option(help="Folder for the index.")],
    engine: Annotated[str, typer.Option(help="containment or lsh.")] = "containment",
    add: Annotated[bool, typer.Option("--add", help="Add the songs to an existing index.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; by default one on this machine.")] = None,
) -> None:
    """Convert every song's lyrics to IPA and index them, for `--set lyrics.library=INDEX` and for `search`.

    Songs with a duplicate id, without lines, too long or in an unknown language are skipped and listed.
    """
    import pyarrow.parquet as pq  # these here because Ray and the languages' tables take seconds to import

    from pipeline.lyrics.indexing import build_index
    from schemas.config import ResourceConfig
    from stages.matching.index import SKETCHES

    if engine not in SKETCHES:
        fail(f"no engine {engine!r}; there are {', '.join(SKETCHES)}", USAGE_PROBLEM)
    console = Console(stderr=True)
    with guarded("interrupted; nothing was written"):
        rows = pq.read_metadata(library).num_rows if library.is_file() else 0
        shown = (TextColumn("songs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*shown, console=console, transient=True) as bar:
            task = bar.add_task("", total=rows)
            resources = ResourceConfig(ray_address=address)
            made = build_index(
                library, out, SKETCHES[engine](), resources, add=add, progress=lambda done: bar.advance(task, done)
            )
    print(f"{out}: {made.songs} songs indexed, {made.skipped.total()} skipped")
    for reason, songs in made.skipped.most_common():
        print(f"  {songs} skipped: {reason}")
    if made.skipped:
        print(f"  they are listed in {out / 'skipped.parquet'}")


@app.command("search", epilog='Example: songmill lyrics search lyrics.index "no more shadows telling me who to be"')
def search_command(
    index: Annotated[Path, typer.Argument(help="Folder of an index, or a small library as Parquet.")],
    words: Annotated[str, typer.Argument(help="Words of a song; - reads them from stdin.")],
    language: Annotated[str | None, typer.Option(help="ISO 639-1 code; by default detected from the words.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Songs to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Find songs that sound like these words, by the share of their distinctive shingles that a song contains."""
    from stages.matching.library import LibraryError, LyricLibrary
    from stages.text.ipa import to_ipa
    from stages.text.language import line_languages

    try:
        library = LyricLibrary.read(index) if index.is_file() else LyricLibrary.open(index)
    except LibraryError as error:
        fail(str(error), DATA_PROBLEM)
    lines = (sys.stdin.read() if words == "-" else words).splitlines()
    spoken = language or Counter(line_languages(lines)).most_common(1)[0][0]
    phones = "".join(to_ipa(lines, spoken)).replace(" ", "")
    found = library.candidates(phones, top)
    if as_json:
        print(
            json.dumps(
                [
                    {"id": hit.song.id, "title": hit.song.title, "artist": hit.song.artist, "share": hit.share}
                    for hit in found
                ],
                ensure_ascii=False,
            )
        )
        return
    table = Table("share", "id", "title", "artist")
    for hit in found:
        table.add_row(f"{hit.share:.2f}", hit.song.id, hit.song.title, hit.song.artist)
    Console().print(table if found else "no song shares a distinctive passage with these words", markup=False)


@app.command("train-tokenizer", epilog="Example: songmill lyrics train-tokenizer lyrics.parquet --out lyric_bpe.json")
def train_command(
    source: Annotated[
        str,
        typer.Argument(parser=place, help="A lyric library (Parquet) or a curated dataset."),
    ],
    out: Annotated[Path, typer.Option(help="Vocabulary file, for --set lyric_tokens.vocabulary=FILE.")],
    size: Annotated[int, typer.Option(help="Number of entries; the released one has 6681.")] = 6681,
) -> None:
    """Train byte-level BPE in the id layout of the released vocabulary. No text has unknown tokens.

    The same songs give the same file.
    """
    from pipeline.lyrics.corpus import lyric_lines
    from schemas.files import write_durably
    from stages.matching.library import LibraryError
    from stages.text.bpe import train

    if out.exists():
        fail(f"{out} exists; choose another --out", DATA_PROBLEM)
    try:
        with Console(stderr=True).status("learning merges"):
            vocabulary = train(lyric_lines(source), size)
    except (DataProblem, LibraryError, ValueError) as error:
        fail(str(error), DATA_PROBLEM)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, vocabulary.to_str(pretty=True).encode())
    print(f"{out}: {vocabulary.get_vocab_size()} entries; use it with --set lyric_tokens.vocabulary={out}")
