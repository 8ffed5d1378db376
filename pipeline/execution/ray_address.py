"""Whether a Ray cluster answers at an address, found out within seconds.

Ray's own client tries for up to five minutes, in calls that no signal interrupts. So the address is asked first: for a
TCP connection, for the words that any gRPC server says first, for the cluster's nodes.
"""

import os
import socket

from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError

from pipeline.errors import DataProblem

_ANSWERS_S = 3.0  # each of TCP, HTTP/2 and the list of nodes
_DEFAULT_PORT = 6379
# A client's first words in HTTP/2, its preface and a frame of no settings; a server's first are a frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEADER, _FRAME_TYPE, _SETTINGS = 9, 3, 4


class Unreachable(DataProblem):
    """No Ray cluster answers, or none that this process can join; the message says what to do."""


def reach(address: str) -> str:
    """Make sure that a cluster can be joined; its address as HOST:PORT. Takes at most about 10 s.

    Args:
        address: HOST:PORT of a cluster's head, or `auto` for one that runs on this machine.

    Raises:
        Unreachable: none can.
    """
    host, port = _host_and_port(address)
    try:
        with socket.create_connection((host, port), _ANSWERS_S) as connection:
            answers = bool(os.environ.get("RAY_USE_TLS", "0") != "0") or _speaks_http2(connection)
    except OSError as error:
        raise _unreachable(address, error.strerror or "no answer") from error
    if not answers:
        raise _unreachable(address, "what listens there is not Ray")
    _require_node_here(f"{host}:{port}", address)
    return f"{host}:{port}"


def _host_and_port(address: str) -> tuple[str, int]:
    if "://" in address:
        raise Unreachable(
            f"Ray address {address}: songmill joins a cluster itself and not through Ray Client or the job server; "
            f"run it on a machine of the cluster and give the head's HOST:PORT, whose port is mostly {_DEFAULT_PORT}"
        )
    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, OSError, ValueError) as error:
        raise _unreachable(address, "no cluster runs on this machine" if address == "auto" else str(error)) from error
    host, _, port = (found or "").rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise _unreachable(address, f"that is not HOST:PORT, such as head:{_DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def _speaks_http2(connection: socket.socket) -> bool:
    connection.settimeout(_ANSWERS_S)
    try:
        connection.sendall(_HELLO)
        frame = connection.recv(_FRAME_HEADER, socket.MSG_WAITALL)
    except OSError:  # it does not answer, or hangs up
        return False
    return len(frame) == _FRAME_HEADER and frame[_FRAME_TYPE] == _SETTINGS


def _require_node_here(found: str, address: str) -> None:
    """Ray waits a minute for a node on this machine; of a cluster that runs there is one or there is none."""
    try:
        nodes = GcsClient(address=found).get_all_node_info(timeout=_ANSWERS_S)
    except (RayError, RuntimeError) as error:
        raise _unreachable(address, str(error).strip().split(". ")[0].rstrip(".")) from error  # advice follows
    if not {node.hex() for node in nodes} & {*find_node_ids()}:
        raise Unreachable(
            f"Ray address {address}: the cluster has no node on this machine; add one with `ray start --address "
            f"{found}`, or run songmill on a machine that is one"
        )


def _unreachable(address: str, why: str) -> Unreachable:
    return Unreachable(
        f"no Ray cluster answers at {address}: {why}; see that its head runs (`ray status`), or unset RAY_ADDRESS and "
        "resources.ray_address to work on this machine alone"
    )
