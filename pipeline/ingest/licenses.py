"""Licence names: SPDX ids for the licences that manifests and tags give."""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import product

UNKNOWN = "unknown"  # in lists of licences, stands for songs without one

_CREATIVE_COMMONS = [
    f"CC-{terms}-{version}"
    for terms, version in product(
        ("BY", "BY-NC", "BY-NC-ND", "BY-NC-SA", "BY-ND", "BY-SA"), ("1.0", "2.0", "2.5", "3.0", "4.0")
    )
]
_OTHER_IDS = """
    CC0-1.0 CC-PDM-1.0 CC-PDDC LAL-1.2 LAL-1.3 OFL-1.1 ODbL-1.0 ODC-By-1.0 PDDL-1.0 MIT MIT-0 ISC 0BSD BSD-2-Clause
    BSD-3-Clause Apache-2.0 Artistic-2.0 BSL-1.0 EPL-2.0 EUPL-1.2 MPL-2.0 Unlicense WTFPL Zlib GPL-2.0-only
    GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later
    AGPL-3.0-only AGPL-3.0-or-later GFDL-1.3-only GFDL-1.3-or-later DSL
"""
_IDS = {name.lower(): name for name in (*_CREATIVE_COMMONS, *_OTHER_IDS.split())} | {"cc0": "CC0-1.0"}

_URL = re.compile(r"^https?://\S+$", re.IGNORECASE)
_CC_URL = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)(/[a-z]{2,3}(?=[/\s]|$))?\S*",
    re.IGNORECASE,
)
_ID_URL = re.compile(
    r"^https?://(?:www\.)?(?:opensource\.org/licenses?|spdx\.org/licenses|apache\.org/licenses(?=/LICENSE-2))/"
    r"([^/\s]+?)(?:\.html|\.txt|/)?$",
    re.IGNORECASE,
)
_CC_SAME_TERMS = {"by-nd-nc": "by-nc-nd"}  # the spelling of version 1.0


@lru_cache(maxsize=4096)  # even a million songs have few distinct licences
def normalize_license(text: str | None) -> str | None:
    """The SPDX id of a licence given by id or URL; other texts stay as they are, blank ones give None.

    A Creative Commons licence ported to a country has terms of its own and keeps its URL.
    """
    text = (text or "").strip()
    return find_license(text) or text or None


def is_allowed(license: str | None, allowed: Iterable[str]) -> bool:
    """Whether a licence is among those allowed.

    Args:
        license: as returned by `normalize_license`.
        allowed: SPDX ids, families ("CC-BY" is every version of it, not CC-BY-NC; "CC" is all of Creative Commons), or
            "unknown" for songs without a licence.
    """
    if license is None:
        return UNKNOWN in allowed
    return any(_covers(name.strip().lower(), license.lower()) for name in allowed)


def _covers(name: str, license: str) -> bool:
    return (
        license == name
        or re.match(rf"{re.escape(name)}-\d", license) is not None
        or (name == "cc" and license.startswith("cc"))
    )


def find_license(text: str) -> str | None:
    """The SPDX id or URL that a text consists of, or the Creative Commons URL in it; None if it names no licence."""
    if link := _CC_URL.search(text):
        return _creative_commons(link)
    text = text.strip()
    if known := _IDS.get(re.sub(r"[\s_]+", "-", text).lower()):
        return known
    if not _URL.match(text):
        return None
    page = _ID_URL.match(text)
    return _IDS.get(page[1].lower().replace("license-", "apache-"), text) if page else text


def _creative_commons(link: re.Match[str]) -> str:
    kind, terms, version, port = link[1].lower(), link[2].lower(), link[3], link[4]
    if kind == "publicdomain":
        name = {"zero": "cc0", "mark": "cc-pdm"}.get(terms, terms)
    else:
        name = f"cc-{_CC_SAME_TERMS.get(terms, terms)}"
    known = _IDS.get(f"{name}-{version}")
    return known if known and not port else link[0].rstrip(").,;")
