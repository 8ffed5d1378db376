"""Ways to write lyrics down: with or without structure tags, line by line or as running text.

A model trained on only one of them does not follow the others. Which one a row gets is drawn from its id, so that the
next run draws the same.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal, get_args

from stages.text.bpe import STRUCTURE_TAGS

Variant = Literal["plain-lines", "plain-flow", "tagged-lines", "tagged-flow"]
Timed = tuple[str, float | None]  # a line and its start in seconds


def drawn(row_id: str) -> Variant:
    """The variant of a row, drawn uniformly from its id."""
    variants: tuple[Variant, ...] = get_args(Variant)
    return variants[blake2b(row_id.encode(), digest_size=8).digest()[0] % len(variants)]


def arrange(
    lines: Sequence[Timed], sections: Sequence[Mapping[str, Any]], variant: Variant
) -> tuple[list[str], Variant]:
    """Lines of text in a variant, and the variant that was possible: tags need times and sections.

    Args:
        lines: the sung lines, in order; a line without a time belongs to the section of the line before it.
        sections: `start_s`, `end_s` and `label` each, in order.
        variant: the requested one. Running text joins the lines up to the next section.
    """
    kind, way = variant.split("-")
    tagged = kind == "tagged" and bool(sections) and any(start_s is not None for _, start_s in lines)
    made: list[str] = []
    for number, group in groupby(_numbered(lines, sections if tagged else ()), lambda item: item[0]):
        tag = f"[{sections[number]['label']}]" if tagged and number is not None else ""
        texts = [text for _, text in group]
        made += [tag] * (tag in STRUCTURE_TAGS) + (texts if way == "lines" else [" ".join(texts)])
    done: Variant = f"{'tagged' if tagged else 'plain'}-{way}"  # type: ignore[assignment]
    return made, done


def _numbered(lines: Sequence[Timed], sections: Sequence[Mapping[str, Any]]) -> list[tuple[int | None, str]]:
    """Every line with the number of the section it begins in; the numbers never decrease."""
    numbered: list[tuple[int | None, str]] = []
    current: int | None = None
    for text, start_s in lines:
        begun = [n for n, section in enumerate(sections) if start_s is not None and section["start_s"] <= start_s]
        current = max(current or 0, begun[-1]) if begun else current
        numbered.append((current, text))
    return numbered
