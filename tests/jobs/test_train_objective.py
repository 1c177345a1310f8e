"""Whole trainings with penalties and augmentation, with other networks, and from weights that exist."""

from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.checkpoint import format
from tests.support.tiny_runs import log, tensors_of, train, train_forked

EVERYTHING = (
    "objective.loss=non-saturating",
    "objective.ortho=1e-4",
    "objective.r1=0.1",
    "objective.r1_every=3",
    "objective.lecam=0.1",
    "objective.cr=1.0",
    "objective.cr_fake=1.0",
    "objective.augment=ada",
    "objective.ada_ramp=500",
    "objective.ada_target=-0.9",
    "tracking.mode=off",
)


@pytest.mark.slow
def test_a_resume_with_every_penalty_is_exact(tmp_path: Path, tiny: str) -> None:
    """LeCam's anchors, ADA's probability and the place of R1 among the steps survive; 2 ranks, 2 micro-batches."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run, stops in ((whole, ["256"]), (parts, ["128", "256"])):
        for stop in stops:
            train_forked(tiny, run, *EVERYTHING, f"total_images={stop}")
    assert tensors_of(whole) == tensors_of(parts)
    states = [format.newest(str(run / "checkpoints")).state()["objective"] for run in (whole, parts)]  # type: ignore[union-attr]
    assert states[0] == states[1]
    assert states[0]["d_steps"] == 8 and states[0]["ada_p"] > 0 and states[0]["ema_real"] != 0


@pytest.mark.slow
def test_weights_that_exist_are_taken_and_others_refused(tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the transposed and strided networks, minimax, and batch-norm groups that span ranks, in D too."""
    old = ("model.generator=transposed", "model.discriminator=strided", "model.d_condition=concat", "objective.loss=minimax")
    train_forked(tiny, tmp_path / "first", *old, "total_images=64", "tracking.mode=off")
    assert main(["train", tiny, f"run={tmp_path}/other", f"init={tmp_path}/first", "total_images=64"]) == 78
    assert "set model.generator=transposed model.discriminator=strided" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    # Steps that hardly move: what comes out is what went in.
    still = ("optim.g_lr=1e-12", "optim.d_lr=1e-12", "optim.warmup=0", "total_images=64", "tracking.mode=off")
    second = train(tiny, tmp_path / "second", *old, *still, f"init={tmp_path}/first")
    assert second.returncode == 0, second.stderr + log(tmp_path / "second")
    assert (
        f"starting from {tmp_path}/first/checkpoints/0000000064-0001: discriminator, discriminator_optimizer" in second.stdout
    )
    before, after = (format.newest(str(tmp_path / run / "checkpoints")) for run in ("first", "second"))
    assert before and after
    for part in ("generator", "discriminator"):
        ours, theirs = before.tensors(part), after.tensors(part)
        weights = [name for name in ours if name.endswith(".weight")]
        assert len(weights) >= 4 and all((ours[name] - theirs[name]).abs().max() < 1e-9 for name in weights)
