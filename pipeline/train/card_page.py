"""What the model cards of all runs share: how they are rendered, and which figures they show."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import yaml
from pydantic import BaseModel

from schemas.files import write_durably
from training.run.run_folder import RunFolder

_ROWS = 12


def write_page(folder: RunFolder, template: str, config: BaseModel, **facts: Any) -> None:
    """Render a card as README.md of a run that has a checkpoint.

    Args:
        folder: the run's folder.
        template: file name beside this module.
        config: the run's settings.
        facts: what else the template shows.
    """
    # No autoescape: this is Markdown, whose table cells are escaped by the filter.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    page = environment.from_string(resources.files("pipeline.train").joinpath(template).read_text("utf-8"))
    text = page.render(
        name=folder.root.resolve().name,
        step=folder.steps()[-1],
        config=config,
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        **facts,
    )
    write_durably(folder.root / "README.md", text.encode())


def evenly_spaced(figures: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """A dozen of the figures at most, including the first and the last."""
    last = len(figures) - 1
    return [figures[place] for place in sorted({round(last * row / (_ROWS - 1)) for row in range(_ROWS)})]
