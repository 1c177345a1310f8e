"""`python -m benchmarks.peers --biggan-pytorch DIR --studiogan DIR --resolution R`: our training step beside theirs.

DIR is a checkout of an original, which stays unchanged; either may be left out. All sides have the same network, real images,
batch, threads and machine. Each side has its own process, started as its users start it. They take turns: one update each,
again and again. An update is one D step, one G step and the average. The figures are medians over the rounds: images/s (real
images that D sees), and the ratio to the original's update in the same round.

With BigGAN-PyTorch both sides also share weights (through `biggan import`), latents and labels. First, three updates in fp32
check that both train the same thing: their losses of D and G must agree. In the mode `fp32` ours therefore moves spectral
norm's vectors before every forward, as theirs does (`objective.power_iteration=forward`). In `fp32, once a step` it does not,
and the losses must differ. StudioGAN's D sees real and fake images in two forwards, and its vectors move between them, so its
losses are not compared.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.others.biggan_pytorch import BN_EPS, SN_EPS
from benchmarks.others.peer import Setting
from benchmarks.support.report import report, table
from benchmarks.support.workers import one_rank
from jobs import cli

SETTINGS = {
    side: Setting(
        resolution=side,
        ch=ch,
        micro_batch=micro_batch,
        classes=classes,
        z_dim=z_dim,
        shared_dim=128,
        g_attention=g_attention,
        d_attention=d_attention,
    )
    for side, ch, micro_batch, classes, z_dim, g_attention, d_attention in (
        (32, 64, 32, 10, 80, (), ()),
        (128, 96, 4, 1000, 120, (64,), (64,)),
        (256, 96, 2, 1000, 140, (128,), (64,)),
    )
}
"""By resolution, with micro-batches that a CPU can take."""
CIFAR = {"z_dim": 128, "shared_dim": 0}
"""BigGAN-PyTorch's own at 32 px."""
ONCE = "fp32, once a step"
MODES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "objective": {"power_iteration": "forward"}},
    ONCE: {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16, compiled": {"precision": "bf16", "compile": True},
}
"""What ours is measured with. fp32: spectral norm's vectors moved as often as theirs."""
DEFAULT = ["fp32", ONCE, "bf16"]
KNOWN = {"biggan-pytorch": "train_fns.py", "studiogan": "src/worker.py"}
"""The originals, and a file by which to know a checkout."""
BARS = {"fp32": 1.2, "fastest": 2.0}
STEPS, LIMIT = 3, 1e-4
"""Updates whose losses are compared, and how far apart, over the larger of 1 and the loss, they may be; or twice as far as the
original with one thread is from itself with all of them."""


class Arm:
    """A process that makes updates (`benchmarks.arms.peers`)."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path, asked: dict[str, Any]):
        self.name, self._process, self._log = name, process, log
        self._send(json.dumps(asked))

    def ready(self) -> "Arm":
        """Wait until it is."""
        self._read()
        return self

    def update(self, kind: str = "update") -> dict[str, Any]:
        """Seconds, losses, threads; `kind` may be `exact`: without TF32."""
        self._send(kind)
        return json.loads(self._read())

    def _send(self, line: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # what it died of is told by `_read`
            print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            said = self._log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.name}: the process ended with {self._process.wait()}:\n{said}")
        return line


@contextlib.contextmanager
def arm(name: str, asked: dict[str, Any], threads: int, folder: Path) -> Iterator[Arm]:
    """A side of the comparison that is on its way to be `ready`; its process ends with the context."""
    own = {"OMP_NUM_THREADS": str(threads)} | (one_rank(torch.cuda.is_available()) if asked["side"] == "ours" else {})
    log = folder / f"{name}.log"
    with open(log, "wb") as errors:
        command = [sys.executable, "-m", "benchmarks.arms.peers"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, env=os.environ | own, text=True, **pipes)  # type: ignore[call-overload]
    try:
        yield Arm(name, process, log, asked)
    finally:
        process.kill()
        process.wait()


def imported(theirs: Path, ours: Path) -> str:
    """The original's weights turned into a checkpoint of ours."""
    with contextlib.redirect_stdout(sys.stderr):
        code = cli.main(["import", str(theirs), str(ours), "--bn-eps", str(BN_EPS), "--sn-eps", str(SN_EPS)])
    if code:
        raise RuntimeError(f"biggan import ended with {code}")
    return str(ours)


def compare_losses(original: Arm, ours: Arm, **others: Arm) -> dict[str, Any]:
    """Losses of `STEPS` updates; how far from the original's, at most, those of each side are; whether ours are the same.

    Of the `others`, `one_thread` is the original, which rounds otherwise with one: nothing can be asked to be nearer to it than
    it is to itself. `once` is ours with the vectors moved another way: were its losses the same, too, they would tell nothing.
    """
    sides = {"theirs": original, "ours": ours, **others}
    rows, apart = [], dict.fromkeys(list(sides)[1:], 0.0)
    for step in range(STEPS):
        said = {name: side.update("exact")["losses"] for name, side in sides.items()}
        rows.append({"update": step + 1} | {f"{key}, {name}": said[name][key] for key in said["ours"] for name in said})
        for name in apart:
            far = [abs(said[name][key] - theirs) / max(1.0, abs(theirs)) for key, theirs in said["theirs"].items()]
            apart[name] = max(apart[name], *(each if math.isfinite(each) else math.inf for each in far))
    own = apart.get("one_thread", 0.0)
    limit = max(LIMIT, 2 * own if math.isfinite(own) else 0.0)
    return {"losses": rows, "apart": apart, "limit": limit, "same losses": apart["ours"] <= limit < apart.get("once", math.inf)}


def race(arms: list[Arm], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each says of each update, after one to warm up; the arms take turns."""
    said: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for _ in range(rounds + 1):
        for arm in arms:
            said[arm.name].append(arm.update())
    return {name: updates[1:] for name, updates in said.items()}


def measure(
    project: str, checkout: Path, setting: Setting, *, modes: list[str], rounds: int, threads: int, half: bool
) -> dict[str, Any]:
    """Beside one original: the losses, whether they agree, and the rows of the table."""
    common = {"setting": asdict(setting), "checkout": str(checkout.resolve()), "save": None}
    found: dict[str, Any] = {"losses": [], "apart": {}, "same losses": True}
    with tempfile.TemporaryDirectory(prefix="biggan-peers-") as name, contextlib.ExitStack() as stack:
        folder, weights = Path(name), None
        (saved := folder / "theirs").mkdir()

        def start(name: str, **asked: object) -> Arm:
            return stack.enter_context(arm(name, common | asked, threads, folder))

        theirs = [start(project, side=project, mode="fp32", save=str(saved))]
        theirs += [start(f"{project}, half", side=project, mode="half")] if half else []
        theirs = [side.ready() for side in theirs]
        if project == "biggan-pytorch":
            weights = imported(saved, folder / "ours")
        ours = [start(f"ours, {mode}", side="ours", mode=mode, keys=MODES[mode], init=weights) for mode in modes]
        ours = [side.ready() for side in ours]
        if weights:
            others = {"once": ours[modes.index(ONCE)]} if ONCE in modes else {}
            with contextlib.ExitStack() as until_then:
                if threads > 1 and not torch.cuda.is_available():
                    again = arm("one thread", common | {"side": project, "mode": "fp32", "load": str(saved)}, 1, folder)
                    others["one_thread"] = until_then.enter_context(again).ready()
                found = compare_losses(theirs[0], ours[0], **others)
        rows = ratios(race([*theirs, *ours], rounds), setting.micro_batch)
    return {"setting": asdict(setting), **found, "rows": rows}


def ratios(said: dict[str, list[dict[str, Any]]], images: int) -> list[dict[str, Any]]:
    """Rows, the original's first: what each makes of an update of `images` images."""
    base = next(iter(said.values()))
    rows = []
    for name, updates in said.items():
        each = sorted(theirs["seconds"] / ours["seconds"] for theirs, ours in zip(base, updates, strict=True))
        row = {"step": name, "images/s": images / median(update["seconds"] for update in updates), "ratio": median(each)}
        row |= {"least": each[0], "most": each[-1], "threads": updates[0]["threads"]}
        rows.append(row | ({"GB": updates[0]["memory"] / 1e9} if "memory" in updates[0] else {}))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for project in KNOWN:
        parser.add_argument(f"--{project}", type=Path, metavar="DIR", help=f"a checkout of {project}")
    parser.add_argument("--resolution", type=int, choices=SETTINGS, default=32, help="pixels (default: 32)")
    parser.add_argument("--ch", type=int, help="width multiplier (default: 64 at 32 px, else 96)")
    parser.add_argument("--micro-batch", type=int, help="images in an update (default: 32 at 32 px, 4 at 128, 2 at 256)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT, help="of ours; the first must be fp32")
    parser.add_argument("--half", action="store_true", help="the originals' mixed precision, too (needs a GPU)")
    parser.add_argument("--rounds", type=int, default=9, help="updates of each (default: 9)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU (default: all)")
    args = parser.parse_args()
    checkouts = {project: found for project in KNOWN if (found := getattr(args, project.replace("-", "_")))}
    if not checkouts:
        parser.error("nothing to compare with: pass --biggan-pytorch DIR or --studiogan DIR (checkouts)")
    for project, checkout in checkouts.items():
        if not (checkout / KNOWN[project]).is_file():
            parser.error(f"--{project} {checkout}: no {KNOWN[project]} in it; name a checkout")
    if args.modes[0] != "fp32":
        parser.error(f"--modes {args.modes[0]} ...: begin with fp32, whose losses are compared")
    if args.half and not torch.cuda.is_available():
        parser.error("--half: the originals' mixed precision needs a GPU; leave it out")
    given = {key: value for key in ("ch", "micro_batch") if (value := getattr(args, key))}
    setting, found = replace(SETTINGS[args.resolution], **given), {}
    for project, checkout in checkouts.items():
        own = replace(setting, **CIFAR) if (project, args.resolution) == ("biggan-pytorch", 32) else setting
        asked = {"modes": args.modes, "rounds": args.rounds, "threads": args.threads, "half": args.half}
        found[project] = measure(project, checkout, own, **asked)
        if found[project]["losses"]:
            print("\n".join(table(found[project]["losses"])), end="\n\n")
    rows = [row for figures in found.values() for row in figures["rows"]]
    ok = all(good(figures) for figures in found.values())
    report("peers", rows, {"rounds": args.rounds, "bars": BARS, **found}, ok)
    return 0 if ok else 1


def good(figures: dict[str, Any]) -> bool:
    """Whether losses agree and both bars are reached."""
    ours = {row["step"]: row["ratio"] for row in figures["rows"] if row["step"].startswith("ours")}
    return figures["same losses"] and ours["ours, fp32"] >= BARS["fp32"] and max(ours.values()) >= BARS["fastest"]


if __name__ == "__main__":
    sys.exit(main())
