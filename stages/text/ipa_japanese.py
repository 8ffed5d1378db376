"""Japanese to IPA: OpenJTalk (pyopenjtalk-plus, whose wheel includes the dictionary), then a table of its phones.

Values follow the broad transcription of the IPA Handbook's illustration of Japanese (Okada 1999).
"""

_PHONES = {
    "a": "a", "i": "i", "u": "ɯ", "e": "e", "o": "o",
    "A": "a", "I": "i", "U": "ɯ", "E": "e", "O": "o",  # devoiced vowels
    "k": "k", "ky": "kj", "kw": "kw", "g": "ɡ", "gy": "ɡj", "gw": "ɡw",
    "s": "s", "sh": "ɕ", "z": "z", "j": "dʑ",
    "t": "t", "ty": "tj", "ts": "ts", "ch": "tɕ", "d": "d", "dy": "dj",
    "n": "n", "ny": "nj", "N": "n", "h": "h", "hy": "ç", "f": "ɸ", "fy": "ɸj",
    "b": "b", "by": "bj", "p": "p", "py": "pj", "v": "v",
    "m": "m", "my": "mj", "y": "j", "r": "ɾ", "ry": "ɾj", "w": "w",
    "cl": "ʔ", "pau": " ", "sil": " ",
}  # fmt: skip

_PROLONGED = "ー〜～"  # OpenJTalk warns about a line that begins with a long-vowel mark


def read(line: str) -> str:
    """IPA of a line; pauses at punctuation become spaces."""
    import pyopenjtalk  # here because its tables take long to load and few songs need them

    return "".join(_PHONES.get(phone, "") for phone in pyopenjtalk.g2p(line.lstrip(_PROLONGED), join=False))
