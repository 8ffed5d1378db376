"""Phones by the way they are made, so that what a recogniser mishears still counts as near.

Recognisers confuse sounds of one place and manner: "list'ning skies", "list and skies". After Dolgopolsky's classes
(1964), as computational linguistics uses them to tell cognates, with vowels by height and backness.
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
    """A text of phones with every phone's class in its place; what is in no class stands for itself."""
    return phones.translate(_TABLE)
