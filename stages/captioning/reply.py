"""The form of a captioning model's answer, and the validation of an answer against it."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

# Text encoders read 256 tokens; longer texts would be cut off in training.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=800)]
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=160)]


class ReplyError(ValueError):
    """An answer that is not a caption; the message says what is wrong, to the model as well as to a human reader."""


class Analysis(BaseModel):
    """The caption taken apart."""

    model_config = ConfigDict(extra="forbid")

    genre: Phrase
    instruments: Annotated[list[Phrase], Field(max_length=12)]
    tempo: Phrase
    mood: Phrase


class Reply(BaseModel):
    """The six styles and the rap check of ACE-Step, section 3.1 of its report (arXiv 2506.00045)."""

    model_config = ConfigDict(extra="forbid")

    simplified: Phrase
    expanded: Text
    descriptive: Text
    synonyms: Text
    use_cases: Text
    analysis: Analysis
    lyrical_rap_check: Literal["instrumental", "sung", "rap"]


def parse(answer: str) -> Reply:
    """The JSON object of an answer, which may be in a Markdown fence or surrounded by other text.

    Raises:
        ReplyError: there is no object, it is cut off, or it does not have the form of `Reply`.
    """
    if (start := answer.find("{")) < 0:
        raise ReplyError("it holds no JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(answer, start)
        return Reply.model_validate(found)
    except json.JSONDecodeError as error:
        raise ReplyError(f"it is no valid JSON: {error.msg} at character {error.pos} of {len(answer)}") from error
    except RecursionError as error:
        raise ReplyError("it is no valid JSON: it is nested too deeply") from error
    except ValidationError as error:
        raise ReplyError("; ".join(_problem_text(problem) for problem in error.errors())) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a reply, for servers that constrain a model to a schema."""
    return Reply.model_json_schema()


def _problem_text(problem: Any) -> str:
    return f"{'.'.join(map(str, problem['loc'])) or 'the object'}: {problem['msg']}"
