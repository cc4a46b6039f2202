"""Addresses: where the gateway listens for HTTP, where a broker listens for other hosts, and who can reach that."""

from __future__ import annotations

import errno
import re
import socket
from contextlib import ExitStack
from ipaddress import ip_address

from zmesh.errors import StartError, UsageError

__all__ = ["broker_address", "check_free", "is_loopback", "listen", "unpickling_problem"]

BACKLOG = 2048


def is_loopback(endpoint: str) -> bool:
    """Whether nobody outside this host can reach it."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if endpoint.startswith("ipc://") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, or *
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on a name or an address, IPv4 first; port 0 takes a free one. Raises StartError."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise StartError(f"cannot listen on {where}: nobody knows the address {host!r}; give another --host") from None
    refused = StartError(f"cannot listen on {where}: it has no address")
    for family, kind, protocol, _, address in sorted(found, key=lambda one: one[0] != socket.AF_INET):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            refused = StartError(f"cannot listen on {where}: {_why(error, host, port)}")
        else:
            return listener
    raise refused


def _why(error: OSError, host: str, port: int, host_flag: str = "--host", port_flag: str = "--port") -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; stop the program that has it, or give another {port_flag}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; give another {host_flag}"
        case errno.EACCES:
            return f"port {port} is not for everybody; give a {port_flag} above 1023"
    return error.strerror or str(error)


# ── the broker's address ──────────────────────────────────────────────────────────────────────────────────────────


def broker_address(flag: str, text: str, stages: int, *, insecure: bool) -> str:
    """The endpoint that `--bind` or `--connect` names; the broker takes the next `stages` ports as well.

    Raises UsageError for what is no such address, or is open to other hosts without `insecure`.
    """
    if text.startswith("ipc:///") and flag == "--connect":
        return text
    found = re.fullmatch(r"tcp://(\*|[\w.-]+|\[[0-9a-fA-F:.%\w]+\]):(\d{1,5})", text)
    if found is None or (found[1] == "*" and flag == "--connect"):
        raise UsageError(f"{flag} must look like tcp://HOST:PORT, not {text!r}")
    port, last = int(found[2]), int(found[2]) + stages
    if port < 1 or last > 65535:
        raise UsageError(f"{flag} {text}: the port must be from 1 to {65535 - stages}, for every stage takes one more")
    if not insecure and not is_loopback(text):
        raise UsageError(
            f"{flag} {text}: other machines can reach that address, and this version has no keys against strangers; "
            "use tcp://127.0.0.1:PORT, or add --insecure on a network that you trust"
        )
    return text


def unpickling_problem(stage: str, endpoint: str) -> str:
    """Why a stage that unpickles may not be served by a broker there, as a sentence; empty when it may.

    tcp has no keys yet, and the loopback is open to every user of the host. ipc sockets lie in a private directory.
    """
    if endpoint.startswith("ipc://"):
        return ""
    return (
        f"stage {stage} unpickles what it is handed, and this version has no keys for {endpoint}: whoever reaches that "
        "address could run code in it; take PickleIPCMixin out, or keep to one host without tcp"
    )


def check_free(endpoint: str, stages: int) -> str:
    """The endpoint with its host as a number, when all its ports can be bound now. Raises StartError."""
    host, _, first = endpoint.removeprefix("tcp://").rpartition(":")
    name = {"*": "0.0.0.0"}.get(host, host).strip("[]")
    try:
        family, kind, protocol, _, address = min(
            socket.getaddrinfo(name, int(first), type=socket.SOCK_STREAM), key=lambda one: one[0] != socket.AF_INET
        )
    except OSError:
        raise StartError(
            f"cannot listen on {endpoint}: nobody knows the address {name!r}; give another --bind"
        ) from None
    with ExitStack() as held:
        for port in range(int(first), int(first) + 1 + stages):
            one = held.enter_context(socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((address[0], port))
                one.listen(1)
            except OSError as error:
                why = _why(error, name, port, "--bind", "--bind")
                after = "the next port" if stages == 1 else f"the next {stages} ports"
                raise StartError(f"cannot listen on {endpoint} and on {after}: {why}") from None
    number = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"tcp://{number}:{first}"
