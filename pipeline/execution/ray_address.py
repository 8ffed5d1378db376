"""Check within seconds whether a Ray cluster answers at an address.

Ray's own client retries for up to five minutes, in calls that no signal interrupts. So three things are checked first:
a TCP connection, an HTTP/2 handshake as of any gRPC server, and the cluster's list of nodes.
"""

import os
import socket

from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from pipeline.errors import DataProblem

_TIMEOUT_S = 3.0  # for each of TCP, HTTP/2 and the list of nodes
_DEFAULT_PORT = 6379
# HTTP/2: a client starts with its preface and a SETTINGS frame, here an empty one; a server with a SETTINGS frame.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEADER, _FRAME_TYPE, _SETTINGS = 9, 3, 4


class Unreachable(DataProblem):
    """No Ray cluster answers, or this process cannot join it; the message names the fix."""


def reach(address: str) -> str:
    """Check that a cluster can be joined; takes at most about 10 s.

    Args:
        address: HOST:PORT of a cluster's head, or `auto` for a cluster on this machine.

    Returns:
        The cluster's address as HOST:PORT.

    Raises:
        Unreachable: the cluster cannot be joined.
    """
    host, port = _host_and_port(address)
    try:
        with socket.create_connection((host, port), _TIMEOUT_S) as connection:
            answers = bool(os.environ.get("RAY_USE_TLS", "0") != "0") or _speaks_http2(connection)
    except OSError as error:
        raise _unreachable(address, error.strerror or "no answer") from error
    if not answers:
        raise _unreachable(address, "another service than Ray listens there")
    _require_node_here(f"{host}:{port}", address)
    return f"{host}:{port}"


def _host_and_port(address: str) -> tuple[str, int]:
    if "://" in address:
        raise Unreachable(
            f"Ray address {address}: Ray Client and the job server are not supported; run songmill on a machine of the "
            f"cluster and use the head's HOST:PORT (the default port is {_DEFAULT_PORT})"
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
    connection.settimeout(_TIMEOUT_S)
    try:
        connection.sendall(_HELLO)
        frame = connection.recv(_FRAME_HEADER, socket.MSG_WAITALL)
    except OSError:  # no answer, or the connection was closed
        return False
    return len(frame) == _FRAME_HEADER and frame[_FRAME_TYPE] == _SETTINGS


def _require_node_here(found: str, address: str) -> None:
    """Check that the cluster has a node on this machine; Ray itself would wait a minute for one."""
    try:
        nodes = GcsClient(address=found).get_all_node_info(timeout=_TIMEOUT_S)
    except AuthenticationError as error:
        why = "it wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token has it"
        raise Unreachable(f"the Ray cluster at {address} cannot be joined: {why}") from error
    except (RayError, RuntimeError) as error:
        raise _unreachable(address, str(error).strip().split(". ")[0].rstrip(".")) from error  # without Ray's advice
    if not {node.hex() for node in nodes} & {*find_node_ids()}:
        raise Unreachable(
            f"Ray address {address}: the cluster has no node on this machine; add one with `ray start --address "
            f"{found}`, or run songmill on one of the cluster's machines"
        )


def _unreachable(address: str, why: str) -> Unreachable:
    return Unreachable(
        f"no Ray cluster answers at {address}: {why}; check that its head is running (`ray status`), or unset "
        "RAY_ADDRESS and resources.ray_address to run on this machine only"
    )
