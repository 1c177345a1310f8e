"""What tests know of the servers that fixtures start for them."""

import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class S3Server:
    """A local S3 server with one bucket."""

    env: dict[str, str]
    """Variables that lead AWS's tools and ours to it: for `monkeypatch.setenv`, or for a child process."""
    uri: str = "s3://biggan-test"
    """The bucket."""


def address(log: Path, server: subprocess.Popen[bytes], said: str) -> str:
    """Where a server listens, once it has said so in its log: the group of the expression `said`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if match := re.search(said, log.read_text()):
            return match[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
