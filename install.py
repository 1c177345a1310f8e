"""Makes .venv beside this file (or in $VENV) and installs the project there: `make demo` and `make test` begin here.

Needs Python >= 3.11 and its standard library. Running it again does nothing when nothing has changed, and repairs an
installation that was interrupted. A machine without an NVIDIA GPU never gets the CUDA packages: pip is asked what it
would install before it does. $TORCH_INDEX adds an index (or a folder) of torch wheels.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything could have checked; so no newer syntax here)
    sys.exit(
        "install.py: error: Python {}.{} is too old, 3.11 is the oldest that works: "
        "name another, as in `make demo PYTHON=python3.12`".format(*sys.version_info)
    )

HERE = Path(__file__).resolve().parent
CUDA_PACKAGE = re.compile(r"nvidia-|cuda-|triton$")
NAME_AN_INDEX = "make demo TORCH_INDEX=<address of a CPU wheel index; see 'Get Started' on the PyTorch site>"
# A folder that holds more than these is somebody else's.
VENV_MAKES = {"bin", "include", "lib", "lib64", "share", "pyvenv.cfg", ".gitignore", "install.log", "constraints.txt"}
# What pip says, what to do about it. The first that is found counts.
ADVICE = (
    (r"No space left on device|Errno 28", "The disk is full: 4 GB are enough for everything."),
    (r"onnection|timed out|resolve host|ProxyError|SSLError", "Is the network, or a proxy, in the way of pip's index?"),
    (
        r"No matching distribution|ResolutionImpossible",
        "No version fits this Python: try PYTHON=python3.11 VENV=.venv311.",
    ),
)


class InstallError(Exception):
    """Ends the installation with its text, without a traceback."""


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


def refuse_cuda(plan: list[dict[str, Any]], gpu: bool) -> None:
    """Raise InstallError if `plan` (`install` of a pip report) brings CUDA to a machine that has no GPU."""
    packages = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in plan}
    cuda = sorted(name for name in packages if CUDA_PACKAGE.match(name))
    build = packages.get("torch", "")
    if not gpu and (cuda or "+cu" in build):
        named = f"{len(cuda)} CUDA packages ({', '.join(cuda[:3])}, ...)" if cuda else "a CUDA build"
        raise InstallError(
            f"pip would install {named} with torch {build}: gigabytes that a machine without a GPU cannot use.\n"
            f"None of it was installed. Say where there are CPU wheels of torch:\n    {NAME_AN_INDEX}"
        )


def has_gpu() -> bool:
    """Does the NVIDIA driver list a GPU?"""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def key(env: Path) -> str:
    """Changes whenever the installation has to be looked at again."""
    digest = hashlib.sha256(f"{HERE}\n{env}\n".encode())
    for name in ("pyproject.toml", "constraints.txt", "install.py"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()


def remove_half_installed(env: Path) -> list[str]:
    """Make pip forget packages whose installation was cut short, so that it installs them again; return their names.

    pip writes RECORD last and in one move: a package without it is not whole, though pip would take it for installed.
    """
    folders = env.glob("lib/python*/site-packages/*.dist-info")
    halves = [folder for folder in folders if not (folder / "RECORD").exists()]
    for folder in halves:
        shutil.rmtree(folder)
    return [folder.name.split("-")[0] for folder in halves]


class Environment:
    """The virtual environment at `root`, and pip in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.python = root, root / "bin" / "python"
        self.log = root / "install.log"

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
        tail: deque[str] = deque(maxlen=12)
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, env=settings, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                tail.append(line.rstrip())
                step.progress(tail[-1].strip())
        if process.wait():
            said = "\n".join(f"    {line}" for line in tail)
            raise InstallError(f"pip failed ({self.log} has all of it):\n{said}\n{advice(said)}")

    def would_install(self, step: Step, *arguments: object) -> list[dict[str, Any]]:
        """What pip would install for these arguments: items with `metadata`, as in its installation report."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            self.pip(step, "--dry-run", "--report", report, *arguments)
            plan: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return plan

    def has(self, distribution: str) -> bool:
        """Is any version of it installed here?"""
        return any(self.root.glob(f"lib/python*/site-packages/{distribution}-*.dist-info"))

    def ask(self, code: str) -> str:
        """The last line that a Python program prints here."""
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, cwd=HERE, check=False)
        if done.returncode:
            raise InstallError(f"what was installed does not work:\n{done.stderr.strip()[-2000:]}\n{advice('')}")
        return done.stdout.strip().splitlines()[-1]


def torch_in(text: str) -> str:
    """The requirement on torch that constraints.txt or pyproject.toml states."""
    found = re.search(r"^\W*(torch[=><][^\"\s]*)", text, re.MULTILINE)
    assert found, "both name torch"
    return found[1]


def install(env: Environment, extras: list[str], constraints: str) -> None:
    """Bring `env`, whatever it is now, to an environment in which the project runs."""
    total = 5
    tested, allowed = torch_in(constraints), torch_in((HERE / "pyproject.toml").read_text())
    index = os.environ.get("TORCH_INDEX", "")
    wheels = ["--find-links" if Path(index).is_dir() else "--extra-index-url", index] if index else []
    limits = env.root / "constraints.txt"

    with Step(1, total, f"Python environment in {env.root}") as step:
        env.create()
        limits.write_text(constraints)
        # An old pip downloads whole wheels to say what it would install; setuptools is for DeepSpeed's setup.py.
        env.pip(step, "--upgrade", "-c", limits, "pip", "setuptools")
    with Step(2, total, "what would pip install for torch?") as step:
        gpu = has_gpu()
        kept = env.has("torch") and not env.would_install(step, allowed)
        plan = [] if kept else env.would_install(step, "-c", limits, *wheels, tested)
        refuse_cuda(plan, gpu)
        step.say(f"{len(plan)} packages, on a machine with{'' if gpu else 'out'} a GPU")
    with Step(3, total, allowed if kept else tested) as step:
        if plan:
            env.pip(step, "-c", limits, *wheels, tested)
        version = env.ask("import importlib.metadata; print(importlib.metadata.version('torch'))")
        step.say(version)
    with Step(4, total, "everything else" + (f", with {' and '.join(extras)}" if extras else "")) as step:
        # From here on this very torch is the only one that pip may consider.
        limits.write_text(constraints.replace(tested, f"torch=={version}"))
        project = f"{HERE}[{','.join(extras)}]" if extras else HERE
        # DeepSpeed comes as source, and its setup.py looks at torch: it shall find this one, not fetch another.
        env.pip(step, "-c", limits, "--no-build-isolation", "--editable", project)
    with Step(5, total, "does it start?") as step:
        device = "'GPU' if torch.cuda.is_available() else 'CPU'"
        step.say(f"on the {env.ask(f'import deepspeed, mlflow, torch, jobs.cli; print({device})')}")


def lock() -> None:
    """Write constraints.txt: what pip chooses today for the project with its dev extras, around the pinned torch."""
    path = HERE / "constraints.txt"
    tested = torch_in(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        env = Environment(Path(folder))
        install(env, ["dev"], f"{tested}\n")
        freeze = [str(env.python), "-m", "pip", "freeze", "--all", "--exclude-editable"]
        frozen = subprocess.run(freeze, stdout=subprocess.PIPE, text=True, check=True).stdout
    # Which build of torch it was ("+cpu") is this machine's affair.
    frozen = re.sub(r"^torch==.*$", tested, frozen, flags=re.MULTILINE)
    python = "{}.{}".format(*sys.version_info)
    path.write_text(f"# What the tests have passed on (Python {python}, CPU). Written by `make lock`.\n{frozen}")
    print(f"wrote {path}: run the tests before you commit it")


def main() -> None:
    """Install unless the stamp says that it was done; the stamp is written last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml, such as dev")
    parser.add_argument("--lock", action="store_true", help="rewrite constraints.txt instead")
    args = parser.parse_args()
    if args.lock:
        return lock()
    env = Environment(HERE / (os.environ.get("VENV") or ".venv"))
    env.root.mkdir(parents=True, exist_ok=True)
    guard = os.open(env.root, os.O_RDONLY)
    fcntl.flock(guard, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds the work done
    stamp = env.root / "installed.json"
    done = json.loads(stamp.read_text()) if stamp.exists() and env.python.exists() else {"key": None, "extras": []}
    if done["key"] == key(env.root) and set(args.extra) <= set(done["extras"]):
        return None
    stamp.unlink(missing_ok=True)
    began, extras = time.monotonic(), sorted({*args.extra, *done["extras"]})
    install(env, extras, (HERE / "constraints.txt").read_text())
    # In one move: a stamp is whole or not there.
    (env.root / "installed.new").write_text(json.dumps({"key": key(env.root), "extras": extras}))
    (env.root / "installed.new").replace(stamp)
    print(f"installed in {time.monotonic() - began:.0f} s; {env.root}/bin/biggan is the command", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        sys.exit(f"install.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninstall.py: interrupted; the same command goes on from here")
