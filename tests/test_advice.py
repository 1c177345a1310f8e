"""What refusals say to do is done, as typed, also with spaces in names: it leads on, and never in a circle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.advice import Advice, advice, follow, wrong
from tests.conftest import write_tree
from tests.jobs.tiny_runs import TINY


@dataclass(frozen=True)
class Scene:
    """A command that is refused, and what a user fills in for the CAPITALS of the advice."""

    words: Callable[[Path], Sequence[str]]
    fills: dict[str, str] = field(default_factory=dict)


def _train(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda at: ["train", str(at / "my tiny.yaml"), f"run={at / 'a run'}", *overrides]


def _tree(at: Path) -> str:
    """A folder of pictures in class folders, with a space in its name."""
    return str(write_tree(at / "my pictures", 2, grey=True))


SCENES: dict[str, Scene] = {
    "batch for the ranks": Scene(_train("batch.global_batch=33", "batch.micro_batch=null")),
    "batch for the group": Scene(_train("batch.global_batch=40")),
    "group for the batch": Scene(_train("batch.norm_group=12")),
    "micro-batch": Scene(_train("batch.micro_batch=5")),
    "classes": Scene(_train("model.num_classes=10")),
    "channels": Scene(_train("model.channels=1")),
    "resolution": Scene(_train("model.resolution=64", "model.ch=8", "model.z_dim=20")),
    "compile and ZeRO-3": Scene(_train("compile=true", "zero.stage=3")),
    "--keep and --resolution": Scene(lambda at: ["shard", _tree(at), str(at / "o"), "--keep", "--resolution", "32"]),
    "quality of png": Scene(lambda at: ["shard", _tree(at), str(at / "o"), "--resolution", "32", "--quality", "90"]),
    "no resolution": Scene(lambda at: ["shard", _tree(at), str(at / "o")]),
    "compile and R1": Scene(_train("compile=true", "objective.r1=1")),
}


@pytest.mark.parametrize("name", SCENES)
def test_advice_leads_on(name: str, shards: Path, tmp_path: Path) -> None:
    scene, number = SCENES[name], 0
    while True:
        at = tmp_path / f"place {number}"
        at.mkdir()
        file = at / "my tiny.yaml"
        file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
        if follow(lambda at=at: scene.words(at), number, scene.fills) is None:  # type: ignore[misc]
            break
        number += 1
    assert number, "there was no advice"


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("a: set batch.micro_batch=4 batch.norm_group=8 or batch.micro_batch=2", 2),
        ("run=/a/b is in use: name another run", 0),
        ("x: add --out DIR", 1),
        ("x: pass --split train or --label none", 2),
        ("x: run `biggan index 'my tars' --out DIR`", 1),
        ("see `biggan evaluate`", 0),
        ("leave out --resolution, --fit and --filter, or --keep", 2),
        ("leave out data.uri or data.mix", 2),
        ("x: type model.widths=[4,8,16] model.ch=3", 1),
    ],
)
def test_advice_is_read_out_of_a_message(message: str, found: int) -> None:
    assert len(advice(message)) == found
    if found == 2 and "set" in message:
        assert advice(message)[0] == Advice(settings=("batch.micro_batch=4", "batch.norm_group=8"))


@pytest.mark.parametrize(
    "message",
    [
        "x: set batch.size=4",
        "x: add --outt DIR",
        "x: run `biggan indx tars`",
        "x: run `biggan index tars --outt DIR`",
        "x: run `biggan index my tars`",
        "x: see `biggan judge`",
    ],
)
def test_advice_that_the_program_does_not_take_is_found(message: str) -> None:
    assert wrong(message)


def test_a_circle_is_found(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import run
    from pipeline.errors import ConfigError

    def circle(config: object, manifest: object) -> None:
        raise ConfigError("no: set seed=1")

    monkeypatch.setattr(run, "check_model", circle)
    file = tmp_path / "my tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
    with pytest.raises(AssertionError, match="circle"):
        follow(lambda: _train()(tmp_path), 0, {})
