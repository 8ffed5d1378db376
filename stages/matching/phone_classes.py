"""Phones grouped by articulation, so that what a recogniser mishears still counts as similar.

Recognisers confuse sounds of similar place and manner: "list'ning skies", "list and skies". After Dolgopolsky's classes
(1964), which computational linguistics uses to detect cognates, with vowels by height and backness.
"""

_CLASSES = {
    "P": "pbɓ",
    "T": "tdʈɖɗθð",
    "K": "kɡgqcɟɠʔ",
    "F": "fvɸβ",
    "S": "szʃʒɕʑʂʐç",
    "H": "hɦxɣχħʕʜ",
    "M": "mɱ",
    "N": "nɳɲŋɴ",
    "L": "lɭʎɫʟɬɮ",
    "R": "rɾɹɻʀʁɽ",
    "J": "j",
    "W": "wɥʋʍɰ",
    "I": "iɪyʏɨ",
    "E": "eɛøœæɜɘ",
    "A": "aɑɒɐʌəɚɝɶ",
    "O": "oɔɤ",
    "U": "uʊɯʉ",
}
_TABLE = str.maketrans({phone: name for name, phones in _CLASSES.items() for phone in phones})


def sound_classes(phones: str) -> str:
    """A string of phones with each replaced by its class; phones without a class stay as they are."""
    return phones.translate(_TABLE)
