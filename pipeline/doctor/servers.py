"""What a run connects to: a Ray cluster, a captioning server. Only the connection is tested."""

import os
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from urllib.parse import urlsplit

from pipeline.doctor.findings import Finding, ok, problem
from schemas.config import ResourceConfig
from stages.base import Stage

_TIMEOUT_S = 3.0


def cluster_address(resources: ResourceConfig) -> str | None:
    """The address of the cluster that a run would join; None if it starts one of its own."""
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def servers(resources: ResourceConfig, stages: Mapping[str, Stage]) -> Iterator[Finding]:
    """Check Ray, and the servers that stages have as their `base_url`."""
    yield _ray(cluster_address(resources))
    for name, stage in stages.items():
        if url := getattr(stage.params, "base_url", None):
            yield _server(name, url)


def _ray(address: str | None) -> Finding:
    found = f"Ray {version('ray')}"
    if not address:
        return ok("Ray", f"{found}; a run starts it on this machine")
    from pipeline.execution.ray_address import Unreachable, reach  # here because Ray takes long to import

    try:
        reach(address)
    except Unreachable as error:
        what, _, fix = str(error).partition("; ")
        return problem("Ray", f"{found}; {what}", fix)
    return ok("Ray", f"{found}; {address} answers")


def _server(stage: str, url: str) -> Finding:
    parts = urlsplit(url)
    error = _refusal(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    if error:
        return problem(
            f"server of {stage}", f"no answer from {url}: {error}", f"start one, or --set {stage}.base_url=URL"
        )
    return ok(f"server of {stage}", f"{url} answers")


def _refusal(host: str, port: int) -> OSError | None:
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        return error
    return None
