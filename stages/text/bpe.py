"""The lyric vocabulary: byte-level BPE in the id layout of the released one, so that special ids mean the same.

Ids 0..2 are [STOP] [UNK] [SPACE], 3..258 the bytes, 259.. the languages with [START] at 261, then the structure
tags, then the merges. No text has unknown tokens; `[lang]`, [SPACE] and the tags are never split.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.text.cleaning import clean

START_ID = 261
LINE_END_ID = 2
SPACE = "[SPACE]"
STRUCTURE_TAGS = (
    "[start]", "[intro]", "[verse]", "[chorus]", "[bridge]", "[outro]", "[end]", "[inst]", "[solo]", "[hook]",
    "[pre-chorus]", "[break]",
)  # fmt: skip
CORPUS = Path(__file__).parents[1] / "data" / "lyric_corpus.txt"
BUILT_IN = Path(__file__).parents[1] / "data" / "lyric_bpe.json"  # train(cleaned_verses(CORPUS), 2048)

_CONTROL = ("[STOP]", "[UNK]", SPACE)
_LANGUAGE_TAGS = (
    "[en]", "[de]", "[START]", "[fr]", "[es]", "[it]", "[pt]", "[pl]", "[tr]", "[ru]", "[cs]", "[nl]", "[ar]",
    "[zh-cn]", "[ja]", "[hu]", "[ko]", "[hi]",
)  # fmt: skip
_SPECIAL = (*_CONTROL, *_LANGUAGE_TAGS, *STRUCTURE_TAGS)
_WORDS = Regex(r"\w+|[^\w\s]+")


def train(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a vocabulary of at most `vocab_size` entries on cleaned lyric lines; deterministic.

    Raises:
        ValueError: `vocab_size` leaves no room for a merge.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(_SPECIAL)
    if room <= len(alphabet):
        raise ValueError(f"a lyric vocabulary needs more than {len(alphabet) + len(_SPECIAL)} entries")
    learner = _framed(models.BPE())
    learner.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    )
    merges = _merges(learner)
    entries = (*_CONTROL, *alphabet, *_LANGUAGE_TAGS, *STRUCTURE_TAGS, *(left + right for left, right in merges))
    return _framed(models.BPE(vocab={entry: id for id, entry in enumerate(dict.fromkeys(entries))}, merges=merges))


def cleaned_verses(path: Path) -> Iterator[str]:
    """Cleaned lines of a file of verses: `[language]` starts a part, `#` a comment, `own:` is a heading."""
    language = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            language = line[1:-1]
        elif line and not line.startswith("#") and line != "own:":
            yield clean(line, language, compat=False)


def _framed(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if model.token_to_id(SPACE) is not None:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
