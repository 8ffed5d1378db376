"""How a captioning model is prompted: the wording, and the facts it gets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROMPT = Path(__file__).parents[1] / "data" / "caption_prompt.yaml"
_MAX_TAGS = 12
_MAX_ERROR = 500  # characters of a complaint; a hostile answer could make it long

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt file: its version and its pieces; `{facts}` and `{error}` are filled in."""

    version: int
    system: str
    listen: str
    recaption: str
    form: str
    repair: str

    @classmethod
    def load(cls, path: Path) -> "Prompt":
        """Read a prompt file.

        Raises:
            ValueError: it is not a mapping, or keys are missing or unknown.
        """
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise ValueError(f"{path}: a prompt has the keys {', '.join(cls.__dataclass_fields__)}")
        return cls(**fields)

    def ask(self, measured: Mapping[str, Any], audio: Message | None) -> list[Message]:
        """The messages about one song; `audio` is the content part with its sound, None to give the facts alone."""
        request = (self.listen if audio else self.recaption).replace("{facts}", json.dumps(facts(measured)))
        text: Message = {"type": "text", "text": f"{request}\n{self.form}"}
        content: Any = [audio, text] if audio else text["text"]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def again(self, answer: str, error: Exception) -> list[Message]:
        """The messages that follow an unusable answer."""
        complaint = self.repair.replace("{error}", str(error)[:_MAX_ERROR])
        return [{"role": "assistant", "content": answer}, {"role": "user", "content": complaint}]


def facts(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The measured columns under names that a musician would use; null columns and fields are left out.

    Title, artist and lyrics are withheld: nobody could use a caption that names them as a prompt for another song.
    """
    rhythm, key, vocals = (measured.get(name) or {} for name in ("rhythm", "key", "vocals"))
    known = {
        "bpm": round(rhythm["bpm"]) if rhythm.get("bpm") else None,
        "time_signature": f"{rhythm['time_signature']}/4" if rhythm.get("time_signature") else None,
        "key": f"{key['tonic']} {key['mode']}" if key.get("tonic") else None,
        "tags": ((measured.get("tags") or {}).get("names") or [])[:_MAX_TAGS] or None,
        "voice": None if vocals.get("has_vocals") is None else "sung" if vocals["has_vocals"] else "none",
        "language": (measured.get("transcript") or {}).get("language"),
        "parts": [item["label"] for item in (measured.get("sections") or {}).get("items") or []] or None,
        "duration_s": round((measured.get("audio") or {}).get("duration_s") or 0) or None,
    }
    return {name: value for name, value in known.items() if value is not None}
