"""Languages as people declare them (ISO 639-1 or 639-2, with a region, or in English) as ISO 639-1 codes."""

# code -> ISO 639-2 codes (ID3's TLAN has those) and English name
_NAMES = {
    "ar": "ara arabic", "cs": "ces cze czech", "da": "dan danish", "de": "deu ger german", "el": "ell gre greek",
    "en": "eng english", "es": "spa spanish", "fi": "fin finnish", "fr": "fra fre french", "he": "heb hebrew",
    "hi": "hin hindi", "hu": "hun hungarian", "id": "ind indonesian", "it": "ita italian", "ja": "jpn japanese",
    "ko": "kor korean", "nl": "nld dut dutch", "no": "nor norwegian", "pl": "pol polish", "pt": "por portuguese",
    "ro": "ron rum romanian", "ru": "rus russian", "sv": "swe swedish", "th": "tha thai", "tr": "tur turkish",
    "uk": "ukr ukrainian", "vi": "vie vietnamese", "zh": "zho chi chinese cmn mandarin",
}  # fmt: skip
_CODES = {name: code for code, names in _NAMES.items() for name in names.split()}


def normalize_language(text: str | None) -> str | None:
    """The ISO 639-1 code; an unknown name stays as it is, in lower case and without a region."""
    if text is None:
        return None
    name = text.strip().lower().replace("_", "-").split("-")[0]
    return _CODES.get(name, name) or None
