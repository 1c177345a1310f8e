"""What refusals say to do is done, as typed, also with spaces in names: it leads on, and never in a circle."""

import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.checkpoint.format import COMMIT
from pipeline.config import build
from pipeline.data.manifest import MANIFEST, load_manifest
from pipeline.runs.run_folder import prepare
from tests.support.advice import Advice, advice, follow, typed, wrong
from tests.support.patterns import PATTERNS, write_tree
from tests.support.saved_run import save_run
from tests.support.tiny_runs import TINY


@dataclass(frozen=True)
class Scene:
    """A command that is refused, and what a user fills in for the CAPITALS of the advice."""

    words: Callable[[Path], Sequence[str]]
    fills: dict[str, str] = field(default_factory=dict)
    instead: bool = False
    """Whether a command that is advised takes the place of the refused one."""


def _train(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda at: ["train", str(at / "my tiny.yaml"), f"run={at / 'a run'}", *overrides]


def _tree(at: Path, name: str = "my pictures") -> str:
    """A folder of pictures in class folders, with a space in its name."""
    return str(write_tree(at / name, 2, grey=True))


def _half_split(at: Path) -> str:
    """A split with class folders beside one without."""
    flat = at / "my set" / "val"
    for i, file in enumerate(sorted(Path(_tree(at, "my set/train")).glob("*/*.png"))[:3]):
        flat.mkdir(exist_ok=True)
        shutil.copy(file, flat / f"{i}.png")
    return str(flat.parent)


def _one_split(at: Path) -> str:
    """A split beside a folder of another name."""
    train = Path(_tree(at, "my set/train"))
    shutil.copytree(train / PATTERNS[0], train.parent / "extra")
    return str(train.parent)


def _tars(at: Path, *labels: str) -> str:
    """A tar of four images of 32 px that another program wrote, labelled in turn."""
    folder = at / "my tars"
    folder.mkdir()
    image = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(image, "PNG")
    with tarfile.open(folder / "000.tar", "w") as tar:
        for i in range(4):
            for extension, data in (("png", image.getvalue()), ("cls", labels[i % len(labels)].encode())):
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(folder)


def _foreign(at: Path) -> str:
    """The same beside the manifest of that program."""
    folder = Path(_tars(at, "0", "1"))
    (folder / MANIFEST).write_text("{}")
    return str(folder)


def _packed_otherwise(at: Path) -> list[str]:
    again = ["shard", _tree(at), str(at / "my shards"), "--resolution"]
    assert typed([*again, "32"])[0] == 0
    return [*again, "16"]


def _of_tars(folder: Callable[[Path], str], *overrides: str) -> Callable[[Path], list[str]]:
    """A training on tars that have no index of ours yet."""
    small = ("model.num_classes=2", "model.channels=1", "batch.global_batch=4", "batch.micro_batch=2", "batch.norm_group=2")
    return lambda at: [*_train(*small, *overrides)(at), f"data.uri={folder(at)}"]


def _damaged(at: Path) -> list[str]:
    """A run whose only checkpoint has lost its commit marker."""
    words = _train("model.num_classes=4", "model.channels=3")(at)
    tree = yaml.safe_load(Path(words[1]).read_text()) | {"run": str(at / "a run")}
    prepare(build(tree), load_manifest(tree["data"]["uri"]))
    folder = at / "a run" / "checkpoints" / "0000000064-0001"
    folder.mkdir(parents=True)
    (folder / COMMIT).write_text("{")
    return words


def _init(at: Path) -> list[str]:
    """Weights of networks with another width and latent."""
    words = _train()(at)
    save_run(at / "first run", Path(yaml.safe_load(Path(words[1]).read_text())["data"]["uri"]), mode="off")
    return [*words, f"init={at / 'first run'}"]


def _gaps(at: Path) -> list[str]:
    """Labels that only a list of thirty names, or new numbers, makes classes of."""
    (at / "names.txt").write_text("\n".join(f"name {i}" for i in range(30)))
    return ["index", _tars(at, "1", "29")]


def _two_sources(at: Path) -> list[str]:
    words = _train()(at)
    uri = yaml.safe_load(Path(words[1]).read_text())["data"]["uri"]
    return [*words, f"data.uri={uri}", f"data.mix.a.uri={uri}"]


SCENES: dict[str, Scene] = {
    "batch for the ranks": Scene(_train("batch.global_batch=33", "batch.micro_batch=null")),
    "batch for the group": Scene(_train("batch.global_batch=40")),
    "group for the batch": Scene(_train("batch.norm_group=12")),
    "micro-batch": Scene(_train("batch.micro_batch=5")),
    "memory without auto": Scene(_train("batch.memory_gb=2")),
    "scaled rates": Scene(_train("optim.lr_scaling=linear"), {"BATCH": "64"}),
    "batch of rates": Scene(_train("optim.lr_batch=64")),
    "classes": Scene(_train("model.num_classes=10")),
    "channels": Scene(_train("model.channels=1")),
    "resolution": Scene(_train("model.resolution=64", "model.ch=8", "model.z_dim=20")),
    "resolution of the data": Scene(_train("data.resolution=16")),
    "compile and ZeRO-3": Scene(_train("compile=true", "zero.stage=3")),
    "compile and R1": Scene(_train("compile=true", "objective.r1=1")),
    "R1 and ZeRO-3": Scene(_train("zero.stage=3", "objective.r1=1")),
    "R1 and batch norm": Scene(_train("model.discriminator=strided", "objective.r1=1")),
    "no intact checkpoint": Scene(_damaged, {"NEW_RUN": "another run"}),
    "two sources of data": Scene(_two_sources),
    "networks of init": Scene(_init),
    "tars without index": Scene(_of_tars(lambda at: _tars(at, "0", "1"))),
    "labels with gaps": Scene(_gaps, {"FILE": "names.txt"}),
    "manifest of another program": Scene(lambda at: ["index", _foreign(at)], {"DIR": "my index"}),
    "pack of tars": Scene(lambda at: ["shard", _foreign(at), "my shards", "--resolution", "32"], {"DST": "my index"}, True),
    "pack over another": Scene(_packed_otherwise),
    "a flat split": Scene(lambda at: ["shard", _half_split(at), "my shards", "--resolution", "32"]),
    "a folder beside a split": Scene(lambda at: ["shard", _one_split(at), "my shards", "--resolution", "32"]),
    "one level too deep": Scene(
        lambda at: ["shard", str(Path(_tree(at, "a/my set/images")).parents[1]), "my shards", "--resolution", "32"],
        {"DST": "my shards"},
    ),
    "--keep and --resolution": Scene(lambda at: ["shard", _tree(at), "my shards", "--keep", "--resolution", "32"]),
    "quality of png": Scene(lambda at: ["shard", _tree(at), "my shards", "--resolution", "32", "--quality", "90"]),
    "no resolution": Scene(lambda at: ["shard", _tree(at), "my shards"]),
}


@pytest.mark.parametrize("name", SCENES)
def test_advice_leads_on(name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, number = SCENES[name], 0
    while True:
        at = tmp_path / f"place {number}"
        at.mkdir()
        monkeypatch.chdir(at)
        file = at / "my tiny.yaml"
        file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
        if follow(lambda at=at: scene.words(at), number, scene.fills, scene.instead) is None:  # type: ignore[misc]
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
    from pipeline.errors import ConfigError
    from pipeline.runs import run_folder

    def circle(config: object, manifest: object) -> None:
        raise ConfigError("no: set seed=1")

    monkeypatch.setattr(run_folder, "check_model", circle)
    file = tmp_path / "my tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
    with pytest.raises(AssertionError, match="circle"):
        follow(lambda: _train()(tmp_path), 0, {})
