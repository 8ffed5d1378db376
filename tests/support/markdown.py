"""Markdown as the tests of the documentation read it: fenced blocks, code spans, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

from tests.support.places import ROOT

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|parsed, not run): *((?:(?!-->).)*?) *-->\s*\Z", re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: it stands in.
        line: of its fence, from 1.
        language: after the fence.
        text: between the fences.
        mark: "not run" or "parsed, not run", from a comment before the fence; empty for a block that is run.
        reason: why it is marked.
    """

    file: Path
    line: int
    language: str
    text: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Command lines as a shell splits them; those of a console block stand behind a dollar."""
        if self.language not in ("sh", "console"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    file: Path

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.file.read_text("utf-8")

    @cached_property
    def prose(self) -> str:
        """What is left without the fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def blocks(self) -> Iterator[Block]:
        """Every fenced block."""
        for fence in _FENCE.finditer(self.text):
            before = self.text[: fence.start()]
            mark = _MARK.search(before)
            yield Block(
                self.file,
                before.count("\n") + 1,
                fence[2],
                dedent(fence[3]),
                *(mark.groups() if mark else ("", "")),
            )

    @property
    def spans(self) -> list[str]:
        """Code spans of the prose."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """Headings as a link names them."""
        titles = (title.lower().replace("`", "") for title in _HEADING.findall(self.prose))
        return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def pages() -> list[Page]:
    """The README, CONTRIBUTING and everything in `docs/`."""
    return [Page(ROOT / "README.md"), Page(ROOT / "CONTRIBUTING.md"), *map(Page, sorted((ROOT / "docs").rglob("*.md")))]
