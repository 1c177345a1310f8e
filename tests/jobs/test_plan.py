"""What `biggan plan` prints, and what it refuses."""

import json

import pytest

from jobs.cli import main
from pipeline import progress
from tests.support.mistakes import refusal

SMALL = ("plan", "fashion-mnist", "--nodes", "2", "--gpus", "2", "batch.micro_batch=32")


@pytest.mark.long
def test_the_table_says_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    rest = ("--gpu", "a100", "--tflops", "10", "--bandwidth", "5", "--store", "100", "--price", "3")
    assert main([*SMALL, *rest, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*SMALL, *rest]) == 0
    table = capsys.readouterr().out
    assert found["batch"] == {"global_batch": 256, "micro_batch": 32, "accumulation": 2, "world_size": 4, "norm_group": 32}
    assert "256 = 4 ranks x 2 micro-batches of 32" in table
    assert found["machines"] == {"nodes": 2, "gpus": 2, "flops": 1e13, "bandwidth": 5e9, "store": 1e8, "memory": 80 * 2**30}
    assert found["total_memory"] == pytest.approx(sum(found["memory"].values()))
    for part, size in found["memory"].items():
        assert not size or f"{size / 2**30:8.2f}  {part}" in table
    assert found["price"] == pytest.approx(3 * found["gpu_hours"]) and f"{found['price']:,.0f} at 3 a GPU hour" in table
    for said in ("A100", "10 of 312 TFLOP/s", "given", f"{found['flops_per_image'] / 1e9:.4g} GFLOP an image"):
        assert said in table
    assert f"{found['hours']:,.1f} hours" in table and "left for CUDA" in table


@pytest.mark.long
def test_a_log_has_its_steps_apart_from_the_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    assert main([*SMALL, "model.ch=4", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["batch"]["global_batch"] == 256
    assert [line.partition(",")[0] for line in said.err.splitlines()] == [f"planning: {n} of 4 steps" for n in (1, 2, 3, 4)]


@pytest.mark.long
def test_defaults_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "precision=fp32"]) == 0
    table = capsys.readouterr().out
    assert "H100" in table and "98.8 of 494 TFLOP/s (20%, assumed" in table and "50 GB/s (published)" in table


@pytest.mark.long
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--nodes", "0"), "--nodes 0: must be at least 1"),
        (("--gpus", "-1"), "--gpus -1: must be at least 1"),
        (("--gpu", "h101"), "--gpu h101: known are b200, h200, h100"),
        (("--mfu", "0"), "--mfu 0: must be above 0"),
        (("--mfu", "0.3", "--tflops", "100"), "leave one out"),
        (
            ("--nodes", "3", "--gpus", "1"),
            "batch.global_batch=256 cannot be shared by 3 ranks in whole groups of 32: set batch.global_batch=192 or",
        ),
        (("modell.ch=3",), "unknown config key modell.ch"),
        (("--nodes", "2", "nonsense"), "unrecognized arguments: nonsense"),
    ],
)
def test_mistakes_are_one_line(argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refusal(capsys, "plan", "fashion-mnist", *argv)
    assert code == 78 and says in line
