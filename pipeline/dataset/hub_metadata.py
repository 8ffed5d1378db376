"""The YAML front matter of a dataset card, which the Hugging Face Hub and the `datasets` library read.

Identifiers are the hub's (https://huggingface.co/docs/hub/datasets-cards and .../repositories-licenses).
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

from pipeline.dataset.stats import Stats
from pipeline.ingest.licenses import UNKNOWN
from schemas.dataset import FEATURES, Layout
from schemas.storage.options import scheme

# Licenses that the hub supports, by lower-case SPDX id; most have the same identifier there.
_SAME = """
    afl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 epl-2.0 eupl-1.2 isc mit mpl-2.0 ofl-1.1 unlicense
    wtfpl zlib
"""
_GPL = ("agpl-3.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0")
_HUB_LICENSES = dict(zip(_SAME.split(), _SAME.split(), strict=True)) | {
    "odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by",
    "pddl-1.0": "pddl",
    "gfdl-1.3-only": "gfdl",
    "gfdl-1.3-or-later": "gfdl",
    **{f"{gpl}-{which}": gpl for gpl in _GPL for which in ("only", "or-later")},
}
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_MOST_NAMED = 1000  # files of a configuration
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_WHISPER_CODES = {"jw": "jv"}  # Whisper's codes that are not in ISO 639


def front_matter(layout: Layout, stats: Stats, columns: Collection[str]) -> dict[str, Any]:
    """The front matter as a mapping.

    Args:
        layout: the dataset.
        stats: its statistics.
        columns: names of the columns in its plan.
    """
    languages = _languages(stats)
    return {
        **_license(stats.counts.get("license", {})),
        "pretty_name": PurePosixPath(layout.url).name,
        **({"language": languages} if languages else {}),
        "size_categories": [_size(stats.rows["kept"])],
        **({"task_categories": ["text-to-audio"]} if "caption" in columns else {}),
        "tags": ["music", "songmill"],
        "configs": _configs(layout),
    }


def _license(counts: dict[str, int]) -> dict[str, str]:
    """The hub allows one license per dataset; if rows have different ones, refer to the rows."""
    if len(counts) != 1:
        return {"license": "other", "license_name": "each-row-its-own"} if counts else {"license": UNKNOWN}
    (license,) = counts
    if license == UNKNOWN:
        return {"license": UNKNOWN}
    if known := _HUB_LICENSES.get(license.lower()):
        return {"license": known}
    is_url = re.fullmatch(r"https?://\S+", license) is not None
    name = "see-link" if is_url else re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or "see-rows"
    return {"license": "other", "license_name": name, **({"license_link": license} if is_url else {})}


def _languages(stats: Stats) -> list[str]:
    """ISO 639 codes of transcribed and declared languages, the most common first."""
    counted = {**stats.counts.get("transcript.language", {}), **stats.counts.get("language", {})}
    codes = (_WHISPER_CODES.get(code, code) for code in counted)
    return list(dict.fromkeys(code for code in codes if _LANGUAGE.fullmatch(code)))


def _size(rows: int) -> str:
    return _SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]


def _configs(layout: Layout) -> list[dict[str, Any]]:
    """One configuration per non-empty folder; `datasets` rejects a configuration without files.

    A synced copy of a bucket has objects that do not count, so files are named one by one.
    """
    folders = {"tracks": layout.shards, **{name: layout.features(name) for name in FEATURES}}
    folders["quarantine"] = layout.quarantine
    configs: list[dict[str, Any]] = []
    for name, folder in folders.items():
        files = [layout.store.key(file) for file in layout.store.names(folder) if file.endswith(".parquet")]
        if not files or (scheme(layout.url) and len(files) > _MOST_NAMED):
            continue
        path = files if scheme(layout.url) else f"{folder}/*.parquet"
        configs.append({"config_name": name, "data_files": [{"split": "train", "path": path}]})
    if configs:
        configs[0]["default"] = True
    return configs
