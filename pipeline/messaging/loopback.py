"""Addresses that nobody but this machine reaches."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping


def is_loopback(address: str) -> bool:
    """Return whether nobody but this machine has the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def stay_on_loopback(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep Gloo's and NCCL's own listeners on the loopback, unless `environ` says where."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {key: name for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if not environ.get(key)}


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Keep this process and its children on the loopback meanwhile, as `stay_on_loopback`."""
    added = stay_on_loopback(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
