"""The command line as a tree: which commands there are and which options each has."""

from collections.abc import Sequence
from functools import cache

import click
from typer.main import get_command

from pipeline.cli import app

_EVERYWHERE = {"--help", "--version", "--verbose", "-v", "-vv", "--log-file"}


@cache
def command_tree() -> dict[tuple[str, ...], set[str]]:
    """Path of every command, such as ("train", "dit"), and of every group -> its options."""

    def walk(command: click.Command, path: tuple[str, ...]) -> dict[tuple[str, ...], set[str]]:
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        found = {path: {name for name in options if name.startswith("-")} | _EVERYWHERE}
        for name, child in getattr(command, "commands", {}).items():
            found |= walk(child, (*path, name))
        return found

    return walk(get_command(app), ())


def unknown_words(words: Sequence[str]) -> list[str]:
    """Of `songmill WORDS`, as documentation writes it, the subcommands and options that do not exist.

    Words in capitals stand for something, and brackets around optional words are left out of account.
    """
    tree, path, unknown = command_tree(), (), []
    words = [word.strip("[],") for word in words]
    if words[:1] == ["--log-file"]:
        words = words[2:]
    for word in words:
        if word.startswith("-"):
            continue
        if (*path, word) in tree:
            path = (*path, word)
        elif any(known[: len(path)] == path and len(known) > len(path) for known in tree) and not word.isupper():
            unknown.append(" ".join((*path, word)))
            break
        else:
            break
    options = (word.partition("=")[0] for word in words if word.startswith("-"))
    return unknown + [f"{' '.join(path)} {option}" for option in options if option not in tree[path]]
