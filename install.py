"""Makes .venv beside this file (or in $VENV) and installs the project there: `make demo` and `make test` begin here.

Needs Python >= 3.11 and its standard library. Running it again does nothing when nothing has changed, and repairs an
installation that was interrupted. A machine without an NVIDIA GPU never gets the CUDA packages: pip is asked what it
would install before it does. torch, and only torch, comes from $TORCH_INDEX, an index or a folder of wheels, if that is set.

Every file has to have a hash that constraints.txt lists. What it does not list (a build of torch from another index, CUDA
packages, what another Python needs) is held to the hash that pip's index states, and named. HASHES=off does without.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything could have checked; so no newer syntax here)
    sys.exit(
        "install.py: error: Python {}.{} is too old, 3.11 is the oldest that works: "
        "name another, as in `make demo PYTHON=python3.12`".format(*sys.version_info)
    )

import tomllib

from installing.constraints import Constraints, torch_in
from installing.environment import Environment, InstallError, Step

HERE = Path(__file__).resolve().parent
CUDA_PACKAGE = re.compile(r"nvidia-|cuda-|triton$")
NAME_AN_INDEX = "make demo TORCH_INDEX=<address of a CPU wheel index; see 'Get Started' on the PyTorch site>"


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
    for path in (HERE / "pyproject.toml", HERE / "constraints.txt", HERE / "install.py", *sorted(HERE.glob("installing/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def requirements(extras: list[str]) -> list[str]:
    """What pyproject.toml asks for, with these extras."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]


def torch_plan(env: Environment, step: Step, lock: Constraints) -> tuple[list[dict[str, Any]], list[object]]:
    """What pip would install for torch, itself first, and the options that find it."""
    index = os.environ.get("TORCH_INDEX", "")
    limits = lock.constrain(env.root, hashes=False)
    if not index:
        return env.would_install(step, *limits, lock.torch), []
    where: list[object] = ["--find-links" if Path(index).is_dir() else "--index-url", index]
    alone = env.would_install(step, "--no-deps", *where, *limits, lock.torch)
    # Its dependencies come from pip's own index: whoever offers torch may not put another numpy in.
    whole = env.would_install(step, *limits, *(f"torch @ {item['download_info']['url']}" for item in alone))
    return [*alone, *(item for item in whole if item["metadata"]["name"] != "torch")], where


def install(env: Environment, extras: list[str], lock: Constraints, image: bool = False) -> None:
    """Bring `env`, whatever it is now, to an environment in which the project runs."""
    total, unknown = 5, []
    allowed = torch_in((HERE / "pyproject.toml").read_text())
    with Step(1, total, f"Python environment in {env.root}") as step:
        env.create()
        # An old pip downloads whole wheels to say what it would install; setuptools is for DeepSpeed's setup.py.
        env.install_lines(step, [lock.requirement(name) for name in ("pip", "setuptools")], "--upgrade", "--no-deps")
    with Step(2, total, "what would pip install for torch?") as step:
        gpu = has_gpu()
        kept = env.has("torch") and not env.would_install(step, allowed)
        plan, where = ([], []) if kept else torch_plan(env, step, lock)
        refuse_cuda(plan, gpu or image)
        step.say(f"{len(plan)} packages, on a machine with{'' if gpu else 'out'} a GPU")
    with Step(3, total, allowed if kept else lock.torch) as step:
        torch = [item for item in plan if item["metadata"]["name"] == "torch"]
        unknown += env.install_plan(step, torch, lock, *where) if torch else []
        others = [item for item in plan if item not in torch]
        unknown += env.install_plan(step, others, lock) if others else []
        version = env.ask("import importlib.metadata; print(importlib.metadata.version('torch'))")
        lock.build = f"torch=={version}"
        step.say(version)
    with Step(4, total, "everything else" + (f", with {' and '.join(extras)}" if extras else "")) as step:
        # DeepSpeed comes as source, and its setup.py looks at torch: it shall find this one, not fetch another.
        unknown += env.install_all(step, requirements(extras), lock, "--no-build-isolation")
        env.pip(step, "--no-deps", "--no-build-isolation", *([] if image else ["--editable"]), HERE)
        but = f" but {', '.join(unknown)}" if unknown else ""
        step.say(f"all{but} by a hash in constraints.txt" if lock.hashed else "by no hash")
    with Step(5, total, "does it start?") as step:
        device = "'GPU' if torch.cuda.is_available() else 'CPU'"
        step.say(f"on the {env.ask(f'import deepspeed, mlflow, torch, jobs.cli; print({device})')}")


def lock() -> None:
    """Write constraints.txt: what pip chooses today for the project with all it is tested with, around the pinned torch.

    And installing/tools/*.txt, what the programs named in the files *.in there need.
    """
    path, tools = HERE / "constraints.txt", HERE / "installing" / "tools"
    tested = torch_in(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        env = Environment(Path(folder))
        install(env, ["dev", "gpu"], Constraints(f"{tested}\n", hashed=False))
        freeze = [str(env.python), "-m", "pip", "list", "--format=freeze", "--exclude-editable"]
        frozen = subprocess.run(freeze, stdout=subprocess.PIPE, text=True, check=True).stdout
        # Which build of torch it was ("+cpu") is this machine's affair.
        (env.root / "pins.in").write_text(re.sub(r"^torch==.*$", tested, frozen, flags=re.MULTILINE))
        subprocess.run([sys.executable, "-m", "venv", env.root / "uv"], check=True)
        subprocess.run([env.root / "uv/bin/pip", "install", "-q", "uv"], check=True)
        pins = with_hashes(env, env.root / "pins.in", "--no-deps")
        for tool in tools.glob("*.in"):
            alone = ["--no-deps"] if tool.stem == "fidelity" else []  # it would bring torchvision
            tool.with_suffix(".txt").write_text(with_hashes(env, tool, "--universal", *alone))
    python = "{}.{}".format(*sys.version_info)
    path.write_text(f"# What the tests have passed on (Python {python}, CPU). Written by `make lock`.\n{pins}")
    print(f"wrote {path} and {tools}/*.txt: run the tests before you commit them")


def with_hashes(env: Environment, wanted: Path, *options: str) -> str:
    """Requirements in full, each with the sha256 of all files that pip's index has of it: uv says so."""
    command = [str(env.root / "uv/bin/uv"), "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--python", str(env.python), *options, str(wanted)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    """Install unless the stamp says that it was done; the stamp is written last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml, such as dev")
    parser.add_argument("--image", action="store_true", help="for another machine: a copy of the project, CUDA allowed")
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
    hashed = os.environ.get("HASHES") != "off"
    install(env, extras, Constraints((HERE / "constraints.txt").read_text(), hashed), image=args.image)
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
