"""What `benchmarks.gpu` and `benchmarks.step` make of what they measure; and, slow, all of it at tiny sizes."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, step
from benchmarks.support import gpu_parts, step_rows
from benchmarks.support.gpu_parts import TRIALS, Bench, against, attempt, bars, one_step, waiting
from benchmarks.support.limited import DoesNotFitError, FailedError, call
from benchmarks.support.timeline import kernel_times, longest_gaps, work
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.training.micro_batch import DOES_NOT_FIT

H100 = "NVIDIA H100 80GB HBM3"
FULL: dict[str, dict[str, Any]] = {
    "step 128 px, bf16, 256": {"pixels": 128, "mode": "bf16", "micro-batch": 256, "images/s": 1500.0},
    "step 128 px, bf16, searched, 256": {"pixels": 128, "mode": next(iter(TRIALS)), "micro-batch": 256, "images/s": 9000.0},
    "step 256 px, bf16, 64": {"pixels": 256, "mode": "bf16", "micro-batch": 64, "images/s": 400.0},
    "peers biggan-pytorch": {"x fp32": 4.5, "x half": 1.5},
    "training": {"data wait": 0.002},
}


def event(name: str, ts: float, dur: float, cat: str = "kernel", stream: int = 7) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": stream}


def test_gaps_are_where_no_stream_works() -> None:
    events = [
        event("c", 130, 10),
        event("long", 0, 100, stream=8),
        event("inside", 20, 10),  # ends before `long` does
        event("copy", 105, 5, "gpu_memcpy"),
        event("python", 0, 500, "cpu_op"),
        {"ph": "i", "cat": "kernel", "name": "no duration", "ts": 300},
    ]
    found = longest_gaps(work(events, gpu=True))
    assert found["gaps"] == [
        {"microseconds": 20, "after": "copy", "before": "c"},
        {"microseconds": 5, "after": "long", "before": "copy"},
    ]
    assert found["busy"] == pytest.approx(115 / 140)
    many = [event(str(i), 10 * i + i * i, 5) for i in range(9)]
    assert [gap["before"] for gap in longest_gaps(work(many, gpu=True))["gaps"]] == ["8", "7", "6", "5", "4"]
    assert longest_gaps([]) == {"busy": None, "gaps": []}


def test_what_operators_call_is_not_their_own_time() -> None:
    events = [event("conv", 0, 100, "cpu_op"), event("copy", 10, 30, "cpu_op"), event("copy", 50, 10, "cpu_op")]
    events += [event("copy", 100, 60, "cpu_op"), event("other thread", 20, 40, "cpu_op", stream=8), event("gpu", 0, 1e6)]
    rows = {row["kernel"]: row for row in kernel_times(work(events, gpu=False))}
    assert list(rows) == ["copy", "conv", "other thread"] and rows["copy"]["calls"] == 3
    assert rows["copy"]["seconds"] == pytest.approx(100e-6) and rows["conv"]["seconds"] == pytest.approx(60e-6)
    assert rows["copy"]["share"] == pytest.approx(0.5)


def test_bars_of_an_h100() -> None:
    judged = {bar["bar"]: (bar["value"], bar["ok"]) for bar in bars(FULL, H100)}
    assert judged == {
        "images/s at 128 px": (1500.0, True),
        "x BigGAN-PyTorch, fp32": (4.5, True),
        "x BigGAN-PyTorch, half": (1.5, False),
        "data wait": (0.002, True),
    }
    assert not gpu.ok([], bars(FULL, H100))
    assert gpu.ok([], bars(FULL | {"peers biggan-pytorch": {"error": "not asked for: --biggan-pytorch DIR"}}, H100))
    # What was to be measured and is not there does not hold.
    assert {bar["ok"] for bar in bars({}, H100)} == {False}


def test_no_other_device_is_held_against_them() -> None:
    assert [bar["ok"] for bar in bars(FULL, "NVIDIA A10")] == [None, True, False, True]  # ratios and shares are any GPU's
    assert {bar["ok"] for bar in bars(FULL, None)} == {None} and gpu.ok(list(_ok(FULL)), bars(FULL, None))


def _ok(rows: dict[str, dict[str, Any]]) -> Any:
    return ({**row, "ok": None} for row in rows.values())


def test_the_fastest_of_ours_is_held_against_each_of_theirs() -> None:
    speeds = {"biggan-pytorch": 100.0, "biggan-pytorch, half": 150.0, "ours, fp32": 200.0, "ours, bf16": 450.0}
    rows = [{"step": name, "images/s": speed} for name, speed in speeds.items()]
    found = against(rows, "biggan-pytorch")
    assert (found["of"], found["x fp32"], found["x half"]) == ("ours, bf16", 4.5, 3.0)
    assert against(rows[:1] + rows[2:], "biggan-pytorch")["x half"] is None


def test_the_first_report_of_a_training_is_of_its_start() -> None:
    def said(speed: float, data: float, step: float) -> dict[str, float]:
        shares = {"time/share/data": 0.9, "time/step_spread": 7.0}
        return {"images_per_second": speed, "time/data": data, "time/d_step": step, **shares}

    found = waiting([said(1, 50, 50), said(100, 1, 9), said(300, 0, 10)])
    assert found == {"images/s": pytest.approx(150), "data wait": pytest.approx(0.05), "seconds": pytest.approx(20)}
    with pytest.raises(FailedError, match="1 reports"):
        waiting([said(1, 50, 50)])


def test_figures_of_a_step() -> None:
    found = {"images": 640, "seconds": 2.0, "updates": 10, "rate": 500e12, "memory": 3e9, "warm": 5.0, "type": "cuda"}
    found |= {"phases": {"d_step": 0.12, "g_step": 0.07, "ema": 0.01}, "device": H100}
    row = step_rows.figures(found, 250e9)
    assert (row["images/s"], row["GFLOP/image"], row["GB"]) == (320, 250, 3)
    assert row["MFU"] == pytest.approx(250e9 * 320 / 500e12) and "threads" not in row
    assert step.good([row, {"error": "does not fit"}]) and not step.good([{"error": "does not fit"}])
    assert not step.good([row, {"error": "Segmentation fault"}])


def test_a_row_is_one_micro_batch_unless_it_is_told_otherwise() -> None:
    batch = step.config_of("biggan-128", ["batch.d_steps=1"], 64).batch
    assert (batch.global_batch, batch.micro_batch, batch.norm_group, batch.d_steps) == (64, 64, 64, 1)
    assert step.config_of("biggan-128", ["batch.global_batch=128"], 64).batch.global_batch == 128
    with pytest.raises(ConfigError, match="type precision=bf16 or precision=fp32"):
        step.config_of("fashion-mnist", [], 64)


@pytest.mark.parametrize("sizes", [gpu_parts.GPU, gpu_parts.TINY])
def test_every_step_has_a_configuration(sizes: gpu_parts.Sizes, tmp_path: Path) -> None:
    for pixels, mode, micro_batch in [*sizes.first, *sizes.then]:
        overrides = [key for key in gpu_parts.MODES.get(mode, []) if not key.startswith("compile=")]
        config = step.config_of(step_rows.PRESET, [*sizes.model[pixels], *overrides], micro_batch)
        assert config.model.resolution == pixels and config.batch.d_steps == 1
    names = [part.name for part in gpu.plan(Bench(tmp_path, sizes))]
    assert len(set(names)) == len(names)
    if sizes is gpu_parts.GPU:
        assert load_config(step_rows.PRESET).model.ch == 96
        assert {n for pixels, mode, n in sizes.first + sizes.then if (pixels, mode) == (128, "fp32")} == {32, 64, 128, 256, 512}


def test_commands_fail_in_one_line(tmp_path: Path) -> None:
    def python(code: str, limit: float = 60) -> str:
        return call([sys.executable, "-c", code], limit, tmp_path / "log")

    assert python("print(1)") == "1\n"
    with pytest.raises(FailedError, match=r"^ZeroDivisionError: division by zero$"):
        python("1 / 0")
    with pytest.raises(FailedError, match="exit code 9"):
        python("raise SystemExit(9)")
    with pytest.raises(DoesNotFitError):
        python(f"raise SystemExit({DOES_NOT_FIT})")
    with pytest.raises(DoesNotFitError):  # as the kernel does when memory runs out
        python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.long
def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; print('on it', file=sys.stderr, flush=True)\n"
    code += f"p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    with pytest.raises(FailedError, match="no end after 5 s: on it"):
        call([sys.executable, "-c", code], 5, tmp_path / "log")
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline


def test_a_part_that_fails_is_a_row(tmp_path: Path) -> None:
    def bad(bench: Bench, limit: float) -> gpu_parts.Row:
        raise IndexError("list index\nout of range")

    bench = Bench(tmp_path, gpu_parts.TINY)
    assert attempt(bench, bad, 1) == {"error": "IndexError: list index out of range", "ok": False}
    assert "Traceback" in bench.log.read_text()
    assert attempt(bench, gpu_parts.trained, 1) == {"error": "no step has been measured", "ok": False}
    gpu.run(bench, [gpu.Part("late", 60, bad)], budget=1)
    assert bench.rows["late"]["ok"] is None and "no time left" in bench.rows["late"]["error"]
    assert json.loads((tmp_path / "rows.jsonl").read_text())["commit"]


@pytest.mark.parametrize(("budget", "ok"), [(90, None), (900, False)])
def test_a_part_that_the_budget_cuts_is_no_fault(budget: float, ok: bool | None, tmp_path: Path) -> None:
    def slow(bench: Bench, limit: float) -> gpu_parts.Row:
        raise FailedError(f"no end after {limit:.0f} s: on it")

    bench = Bench(tmp_path, gpu_parts.TINY)
    gpu.run(bench, [gpu.Part("slow", 100, slow)], budget)
    assert bench.rows["slow"]["ok"] is ok


def test_what_cannot_work_is_not_tried(tmp_path: Path) -> None:
    before = {"pixels": 32, "mode": "bf16", "micro-batch": 4}
    full = Bench(tmp_path, gpu_parts.TINY, rows={"a": before | {"error": "does not fit", "ok": None}})
    assert one_step(full, 1, 32, "bf16", 8) == before | {"micro-batch": 8, "error": "does not fit", "ok": None}
    broken = Bench(tmp_path, gpu_parts.TINY, rows={"a": before | {"error": "no compiler", "ok": False}})
    assert one_step(broken, 1, 32, "bf16", 2)["error"] == "not tried: micro-batch 4 has failed"


@pytest.mark.slow
def test_a_row_that_does_not_fit_leaves_the_others(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # 600 GB of images.
    small = ["model.ch=4", "model.resolution=32", "model.num_classes=4", "--updates", "2"]
    monkeypatch.setattr(sys, "argv", ["step", *small, "--micro-batch", "50000000", "2"])
    assert step.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows[0] == {"micro-batch": 50_000_000, "error": "does not fit"} and rows[1]["images/s"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_at_tiny_sizes_but_a_compilation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU needs a minute to compile, if there is an end to it: the last part is cut, and that leaves the others."""
    monkeypatch.setattr(gpu, "TINY", replace(gpu_parts.TINY, compile_limit=12.0))
    command = ["gpu", "--tiny", "--out", str(tmp_path / "out")]
    checkout = os.environ.get("BIGGAN_PYTORCH")
    command += ["--biggan-pytorch", checkout] if checkout else []
    monkeypatch.setattr(sys, "argv", command)
    code = gpu.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "out" / "result.json").read_text()) and found["tiny"]
    rows = {row["part"]: row for row in found["rows"]}
    assert list(rows) == [part.name for part in gpu.plan(Bench(tmp_path, gpu_parts.TINY))]
    assert all(row["ok"] in (True, False, None) for row in [*found["rows"], *found["bars"]])
    assert {bar["ok"] for bar in found["bars"]} == {None} and found["ok"] is (code == 0)
    for name, row in rows.items():
        if "compiled" not in name and not name.startswith("peers"):
            assert "error" not in row, row
    (compiled,) = (row for name, row in rows.items() if "compiled" in name)
    assert compiled.get("images/s", 0) > 0 or compiled["error"].startswith("no end after 12 s"), compiled
    traced = rows["step 32 px, bf16, 4"]
    assert len(traced["gaps"]) == 5 and len(traced["kernels"]) == 20 and 0 < traced["busy"] <= 1
    assert (tmp_path / "out" / "bf16.trace.json.gz").stat().st_size
    assert 0 <= rows["training"]["data wait"] < 1 and rows["training"]["images/s"] > 0
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in lines] == list(rows)
    assert len(list((tmp_path / "out").iterdir())) == 4  # with the log; a GPU machine may hand back few files
    if checkout:
        assert rows["peers biggan-pytorch"]["x fp32"] > 0
