"""Machines for tests, all on this one: each has network, host name, processes, mounts and /dev/shm of its own.

They stand on one bridge. Each has an address there and knows the others by name; the host is on it, too. Files they share
with the host, as the machines of a cluster share a file system, except folders that are named as disks: of those each node
has its own. Needs root, and the right to make namespaces.
"""

import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.liveness import started

_INIT = """
set -e
echo born
hostname "$NODE_NAME"
mount --bind "$NODE_HOSTS" /etc/hosts
mount -t tmpfs shm /dev/shm
while read -r disk; do [ -z "$disk" ] || mount -t tmpfs disk "$disk"; done <<< "$NODE_DISKS"
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip addr add "$NODE_ADDRESS/24" dev eth0
ip link set eth0 up
echo up
while :; do sleep 1000 & wait; done  # bash, as process 1, reaps whatever loses its parent
"""
_NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_serial = itertools.count()


def require() -> None:
    """Skip the test where this user cannot make machines: neither root nor in a container that may make namespaces."""
    if os.geteuid() or subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make network namespaces here")


def until(true: Callable[[], Any], seconds: float, what: str, every: float = 0.1) -> Any:
    """What `true` returns once it is true. Fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return found


class Node:
    """One machine."""

    def __init__(self, name: str, address: str, link: str, bridge: str, hosts: Path, disks: Sequence[Path]) -> None:
        self.name = name
        self.address = address
        self._link, self._bridge = link, bridge
        self._env = {"NODE_NAME": name.partition(".")[0], "NODE_ADDRESS": address, "NODE_HOSTS": str(hosts)}
        self._env["NODE_DISKS"] = "\n".join(map(str, disks))
        self._unshare: subprocess.Popen[str] | None = None
        self.pid = 0
        """Its process 1, as the host numbers it; 0 while it is down."""

    def boot(self) -> None:
        """Switch it on: with an empty /dev/shm and empty disks."""
        assert not self.pid, f"{self.name} is up"
        self._unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "bash", "-c", _INIT],  # it dies with the tests
            env=os.environ | self._env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._unshare.stdout and self._unshare.stdout.readline() == "born\n"
        self.pid = _children(self._unshare.pid)[0]
        # The same hardware address at every boot: else its peers send to the old one for ten seconds.
        hardware = ":".join(["02", "51", *(f"{int(part):02x}" for part in self.address.split("."))])
        _ip(f"link add {self._link} type veth peer name eth0 address {hardware} netns {self.pid}")
        _ip(f"link set {self._link} master {self._bridge} up")
        assert self._unshare.stdout.readline() == "up\n"

    def crash(self) -> None:
        """A power cut: every process on it is gone when this returns."""
        if self._unshare:
            self._unshare.kill()  # and its child, and with process 1 the kernel kills all of its process namespace
            self._unshare.wait()
            until(lambda: not started(self.pid), 30, f"{self.name} is off", 0.02)
            self._unshare = None
        self.pid = 0
        if Path(f"/sys/class/net/{self._link}").exists():  # the kernel takes it away with the namespace, a little later
            subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)

    def cut(self) -> None:
        """Pull its network cable. Its processes go on."""
        _ip(f"link set {self._link} down")

    def heal(self) -> None:
        """Plug it in again."""
        _ip(f"link set {self._link} up")

    def start(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, **more: Any) -> Any:
        """A `subprocess.Popen` of `command` on it, in `cwd`; `more` goes to Popen. To end it: `signal`, not its `kill`."""
        inside = ["nsenter", "--all", f"--target={self.pid}", "--", "env", f"--chdir={cwd or Path.cwd()}", *command]
        return subprocess.Popen(inside, env=os.environ | dict(env or {}), **more)

    def run(self, *command: str, timeout: float = 120, **more: Any) -> str:
        """What `command` says on stdout, on it. Fails if the command does."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{self.name}: {' '.join(command)}: {out}{err}"
        return out

    def signal(self, process: "subprocess.Popen[Any]", number: int = signal.SIGTERM) -> None:
        """Signal what `start` has started: its own process, and not nsenter, which waits for it out here."""
        (inside,) = _children(process.pid)
        os.kill(inside, number)


class Nodes:
    """Nodes of these names on one bridge, up while this context is open.

    `disks` are folders that each node has for itself, empty at every boot; a name as `a.b` is known as `a`, too.
    """

    def __init__(self, folder: Path, names: Sequence[str], disks: Sequence[Path] = ()) -> None:
        _sweep()
        network = _free_network()
        bridge = f"bg{os.getpid()}-{next(_serial)}"
        self.host = f"{network}.1"
        """Address of this machine, for servers that the nodes shall reach."""
        self._bridge = bridge
        self._hosts = folder / "hosts"
        rows = [f"{network}.{index + 2} {name} {name.partition('.')[0]}" for index, name in enumerate(names)]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", f"{self.host} {os.uname().nodename}", *rows]) + "\n")
        for disk in disks:
            disk.mkdir(parents=True, exist_ok=True)
        self._nodes = [
            Node(name, f"{network}.{index + 2}", f"{bridge}n{index}", bridge, self._hosts, disks)
            for index, name in enumerate(names)
        ]

    def __enter__(self) -> "Nodes":
        _ip(f"link add {self._bridge} type bridge")
        try:
            _ip(f"addr add {self.host}/24 dev {self._bridge}")
            _ip(f"link set {self._bridge} up")
            for node in self:
                node.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self:
            node.crash()
        _ip(f"link del {self._bridge}")

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, which: str | int) -> Node:
        """By name, or by place."""
        return self._nodes[which] if isinstance(which, int) else next(node for node in self if node.name == which)


def _ip(arguments: str) -> None:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {arguments}: {done.stderr}"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _free_network() -> str:
    """The first three numbers of a /24 that this machine has no address in."""
    taken = subprocess.run(["ip", "-4", "-brief", "address"], capture_output=True, text=True, check=True).stdout
    for place in range(os.getpid(), os.getpid() + 1000):
        network = f"10.{64 + place // 256 % 64}.{place % 256}"
        if f" {network}." not in taken:
            return network
    raise AssertionError("no free network in 10.64.0.0/10")


def _sweep() -> None:
    """Remove bridges of test processes that were killed. Their nodes died with them."""
    for link in Path("/sys/class/net").iterdir():
        if (match := re.fullmatch(r"bg(\d+)-\d+", link.name)) and not Path(f"/proc/{match[1]}").exists():
            subprocess.run(["ip", "link", "del", link.name], capture_output=True, check=False)
