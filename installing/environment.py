"""A virtual environment, and pip in it: what it installs is held to hashes, and its failures end in advice."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from installing.constraints import Constraints

HERE = Path(__file__).resolve().parent.parent
LOG = "install.log"
# A folder that holds more than these is somebody else's.
VENV_MAKES = {"bin", "include", "lib", "lib64", "share", "pyvenv.cfg", ".gitignore", LOG, "constraints.txt"}
# What pip says, what to do about it. The first that is found counts.
ADVICE = (
    (r"No space left on device|Errno 28", "The disk is full: 4 GB are enough for everything."),
    (
        r"DO NOT MATCH THE HASHES",
        "A file is not the one that was tested. If pip's index builds its own, and you trust it, set HASHES=off.",
    ),
    (r"onnection|timed out|resolve host|ProxyError|SSLError", "Is the network, or a proxy, in the way of pip's index?"),
    (
        r"No matching distribution|ResolutionImpossible",
        "No version fits this Python: try PYTHON=python3.11 VENV=.venv311.",
    ),
)


class InstallError(Exception):
    """Ends the installation with its text, without a traceback."""


class PipError(InstallError):
    """A pip that failed, with everything that it said."""

    def __init__(self, text: str, output: str) -> None:
        super().__init__(text)
        self.output = output


class Step:
    """One numbered line, with what pip is at while it works (on a terminal) and the seconds in the end."""

    def __init__(self, number: int, total: int, title: str) -> None:
        self.head, self.began = f"[{number}/{total}] {title}", time.monotonic()
        self.said = ""

    def __enter__(self) -> "Step":
        print(f"{self.head} ...", end="", flush=True)
        return self

    def progress(self, line: str) -> None:
        """Show the last thing that pip said, where a line can be overwritten."""
        if sys.stdout.isatty():
            room = shutil.get_terminal_size().columns - len(self.head) - 8
            print(f"\r{self.head} ... {line[: max(room, 0)]}\x1b[K", end="", flush=True)

    def say(self, text: str) -> None:
        """What the step found out, for the end of its line."""
        self.said = f": {text}"

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        clear = f"\r\x1b[K{self.head} ..." if sys.stdout.isatty() else ""
        outcome = "failed" if kind else f"{time.monotonic() - self.began:.0f} s{self.said}"
        print(f"{clear} {outcome}", flush=True)


def advice(output: str) -> str:
    """What to do about a pip that failed with `output`."""
    found = [text for pattern, text in ADVICE if re.search(pattern, output)]
    return " ".join([*found[:1], "Then run the same command again: what is already there is kept."])


def remove_half_installed(env: Path) -> list[str]:
    """Make pip forget packages whose installation was cut short, so that it installs them again; return their names.

    pip writes RECORD last and in one move: a package without it is not whole, though pip would take it for installed. Others
    leave RECORD out on purpose, and say who they are in INSTALLER: theirs stay, as does all where we never ran pip.
    """
    if not (env / LOG).exists():
        return []
    folders = [folder for folder in env.glob("lib/python*/site-packages/*.dist-info") if not folder.is_symlink()]
    halves = [folder for folder in folders if not (folder / "RECORD").exists() and installer(folder) in ("", "pip")]
    for folder in halves:
        shutil.rmtree(folder)
    return [folder.name.split("-")[0] for folder in halves]


def installer(folder: Path) -> str:
    """Who says that it has installed the package of this .dist-info; nobody, if it was cut short early."""
    said = folder / "INSTALLER"
    return said.read_text(errors="replace").strip() if said.is_file() else ""


class Environment:
    """The virtual environment at `root`, and pip in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.python = root, root / "bin" / "python"
        self.log = root / LOG

    def create(self) -> None:
        """Make it, unless a Python with pip is there already; whatever an interrupted run has left is repaired."""
        remove_half_installed(self.root)
        state = 1
        if self.python.exists():
            probe = [str(self.python), "-c", "import sys, pip; sys.exit(3 if sys.version_info < (3, 11) else 0)"]
            state = subprocess.run(probe, capture_output=True, check=False).returncode
        if state == 3:
            raise InstallError(f"the Python in {self.root} is too old: remove that folder, or name another in VENV")
        if state == 0:
            return
        if not {path.name for path in self.root.iterdir()} <= VENV_MAKES:
            raise InstallError(f"{self.root} is no virtual environment: name a new folder in VENV")
        if importlib.util.find_spec("ensurepip") is None:  # Debian and its kin ship it apart
            package = "python{}.{}-venv".format(*sys.version_info)
            raise InstallError(f"this Python cannot make virtual environments; as root: apt-get install {package}")
        made = subprocess.run([sys.executable, "-m", "venv", self.root], capture_output=True, text=True, check=False)
        if made.returncode:
            raise InstallError(f"python -m venv failed:\n{made.stdout}{made.stderr}".strip())

    def pip(self, step: Step, *arguments: object) -> None:
        """Run `pip install`; its output goes to the log, its last lines into the error if it fails."""
        # DS_BUILD_OPS: none of DeepSpeed's C++ is compiled, nor used. PIP_USER would defeat the environment.
        settings = {**os.environ, "DS_BUILD_OPS": "0", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        # --no-compile: of 15,000 modules a run imports some 3,000, and Python compiles those itself.
        options = ["--no-input", "--no-compile", "--progress-bar=off"]
        command = [str(self.python), "-m", "pip", "install", *options, *map(str, arguments)]
        output: list[str] = []
        self.log.touch(0o600)  # an address of an index may have a password
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, env=settings, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                output.append(line.rstrip())
                step.progress(output[-1].strip())
        if process.wait():
            said = "\n".join(f"    {line}" for line in output[-12:])
            raise PipError(f"pip failed ({self.log} has all of it):\n{said}\n{advice(said)}", "\n".join(output))

    def would_install(self, step: Step, *arguments: object) -> list[dict[str, Any]]:
        """What pip would install for these arguments: items with `metadata`, as in its installation report."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            self.pip(step, "--dry-run", "--report", report, *arguments)
            plan: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return plan

    def install_plan(self, step: Step, plan: list[dict[str, Any]], lock: Constraints, *options: object) -> list[str]:
        """Install exactly what pip said it would, each file by its hash; return the names that `lock` has no hash of."""
        lines, unknown = [], []
        for item in plan:
            name, version = item["metadata"]["name"], item["metadata"]["version"]
            stated = item["download_info"]["archive_info"]["hashes"]["sha256"]
            known = lock.hashes(name, version)
            if not known or (name == "torch" and stated not in known):  # other indexes have builds of torch of their own
                unknown.append(name)
                known = [stated]
            lines.append(f"{name}=={version}" + lock.options(known))
        self.install_lines(step, lines, "--no-deps", *options)
        return unknown

    def install_lines(self, step: Step, lines: list[str], *options: object) -> None:
        """Install requirements with hashes, which pip takes from a file alone."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            self.pip(step, *options, "-r", file.name)

    def install_all(self, step: Step, requirements: list[str], lock: Constraints, *options: object) -> list[str]:
        """Install what they need, each file by its hash in `lock`; return the names that it has no hash of."""
        try:
            self.pip(step, *lock.constrain(self.root), *options, *requirements)
            return []
        except PipError as error:
            if not re.search(r"In --require-hashes mode|Hashes are required", error.output):
                raise
        # Another Python or machine needs packages that no line names.
        plan = self.would_install(step, *lock.constrain(self.root, hashes=False), *options, *requirements)
        return self.install_plan(step, plan, lock, *options)

    def has(self, distribution: str) -> bool:
        """Is any version of it installed here?"""
        return any(self.root.glob(f"lib/python*/site-packages/{distribution}-*.dist-info"))

    def ask(self, code: str) -> str:
        """The last line that a Python program prints here."""
        done = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
        )
        if done.returncode:
            raise InstallError(f"what was installed does not work:\n{done.stderr.strip()[-2000:]}\n{advice('')}")
        return done.stdout.strip().splitlines()[-1]
