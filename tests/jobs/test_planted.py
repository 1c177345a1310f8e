"""Files of a user, in every folder that our commands write to, are there afterwards, byte for byte."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from pipeline.checkpoint import format
from pipeline.config import load_config
from pipeline.runs.resume import begin_anew
from tests.support.tiny_runs import TINY, train_forked

NAMES = (
    *(
        "thesis-1.tex",
        "old.tmp",
        ".draft.tmp",
        ".DS_Store",
        "lost+found/inode",
        "STOP.old",
        "fence-1.json~",
        "manifest.json.bak",
    ),
    *("1700000000/paper.csv", "20240930123000/paper.csv", "1700000001-0001/paper.csv", "0000000007/notes.txt"),
    *("0123456789abcdef0123456789abcdef", ".0123456789abcdef0123456789abcdef.tmp", "classifier-0123456789abcdef.txt"),
    *(
        "000000.tar.bak",
        "0000000.tar",
        "00000.tar.idx",
        ".000000.tar.half.tmp",
        "pack.json.orig",
        "report.json~",
        "demo.123.new",
    ),
)


def plant(folder: Path, outside: Path) -> None:
    """Put files into a folder, older than anything else there, and a link to a folder elsewhere."""
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
        os.utime(folder / name, (0, 0))
    (folder / "1500000000-0001").symlink_to(outside)


def missing(folder: Path, outside: Path) -> list[str]:
    """Return what is not as `plant` left it."""
    changed = [name for name in NAMES if not (folder / name).is_file() or (folder / name).read_bytes() != name.encode() * 100]
    link = folder / "1500000000-0001"
    more = [
        name
        for name in ("1700000000", "20240930123000", "1700000001-0001", "0000000007")
        if len(os.listdir(folder / name)) != 1
    ]
    return changed + more + ([] if link.is_symlink() and link.resolve() == outside.resolve() else [link.name])


def use(base: Path, splits: Path, config: str, images: int, again: bool) -> None:
    """Do everything that writes, with the same addresses each time, or new ones in the same folders."""
    run, turn = base / "run", "2" if again else "1"
    overrides = [f"total_images={images}", f"checkpoint.uri={base / 'results'}", f"data.cache={base / 'scratch'}"]
    train_forked(config, run, *overrides, ranks=1)
    commands: list[list[Any]] = [
        ["shard", splits / "test", base / "packed", "--resolution", "16", "--shard-size", turn, "--overwrite"],
        ["index", base / "tars" / "000000.tar", "--out", base / "index"],
        ["evaluate", run, "--samples", "8", "--cache", base / "judges"],
        ["sync", run, "--moved"],
        ["report", run],
        ["export", run, base / "exports" / turn, "--format", "safetensors", "--standing", "8"],
        ["checkpoint", "export", run, base / "exports" / f"weights{turn}"],
        ["sample", run, f"{base / 'drawn' / turn}/", "--count", "4", "--format", "shards", "--standing", "8"],
        ["sample", run, base / "drawn" / f"{turn}.npz", "--count", "4", "--standing", "8"],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 0, command


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "short_recipe", "quick")
def test_what_lies_in_our_folders_stays(tmp_path: Path, splits: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    for split in ("train", "test"):
        shutil.copytree(splits / split, base / "data" / split)
    shutil.copytree(splits / "test", base / "tars", ignore=shutil.ignore_patterns("*.json", "*.idx"))
    outside.mkdir()
    (outside / "ema.rank00000.safetensors").write_bytes(b"\x08" + bytes(7) + b"{       ")
    model = TINY["model"] | {"channels": 1}
    data = {"uri": str(base / "data" / "train"), "cache_gb": 1e-4}
    batch = TINY["batch"] | {"micro_batch": 16}
    tree = TINY | {
        "model": model,
        "batch": batch,
        "processes": 1,
        "checkpoint": {"every": 32},
        "sample_every": 64,
        "data": data,
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree))

    use(base, splits, str(config), 96, again=False)
    folders = [path for path in (base, *base.rglob("*")) if path.is_dir()]
    assert len(folders) > 20
    for folder in folders:
        plant(folder, outside)
    use(base, splits, str(config), 192, again=True)
    removed = base / "results" / "0000000064-0001"
    assert removed in folders and not (removed / format.COMMIT).exists(), "ours have gone from beside them"
    for path in (base / "results").glob("*/" + format.COMMIT):
        path.write_bytes(b"damaged")
    (line,) = begin_anew(load_config(str(config), [f"run={base / 'run'}", f"checkpoint.uri={base / 'results'}"]))
    assert line.startswith("beginning anew")
    assert {str(folder): found for folder in folders if (found := missing(folder, outside))} == {}
    assert [path.name for path in outside.iterdir()] == ["ema.rank00000.safetensors"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["train", "CONFIG", "run=MINE"],
            "run={mine} is not empty and is not the folder of a run (it holds 1700000000): set run=",
        ),
        (
            ["train", "CONFIG", "run=new", "checkpoint.uri=MINE"],
            "checkpoint.uri={mine} is not empty and is not a folder of check",
        ),
        (["shard", "DATA", "MINE", "--resolution", "16"], "{mine} is not empty (it holds 1700000000): name another DST"),
        (
            ["shard", "DATA", "MINE", "--resolution", "16", "--overwrite"],
            "{mine} is not empty (it holds 1700000000): name another",
        ),
        (["checkpoint", "export", "RUN", "MINE"], "DST {mine} is not empty (it holds 1700000000): name a new folder"),
        (["sample", "RUN", "MINE/", "--count", "2"], "OUT {mine}/ is not empty (it holds 1700000000): name a new folder"),
        (["export", "RUN", "MINE"], "DST {mine} is there already: name a new folder"),
        (["import", "DATA", "MINE"], "DST {mine} is not empty (it holds 1700000000): name a new folder"),
    ],
)
def test_a_folder_of_others_is_refused_by_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: str, run_folder: Path,
    shards: Path, command: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "1700000000").mkdir()
    for name in ("1700000000/paper.csv", "thesis.tex", "STOP", ".hidden", "lock"):
        (mine / name).write_text("mine")
    words = {"CONFIG": tiny, "MINE": str(mine), "RUN": str(run_folder), "DATA": str(shards)}
    typed = [
        word if word == "run=new" else word.replace("MINE", str(mine)) if "MINE" in word else words.get(word, word)
        for word in command
    ]
    assert main(typed) == 78
    assert said.format(mine=mine) in capsys.readouterr().err
    assert {path.name: path.read_text() for path in mine.rglob("*") if path.is_file()} == dict.fromkeys(
        ("paper.csv", "thesis.tex", "STOP", ".hidden", "lock"), "mine"
    )
    assert not (tmp_path / "new").exists()
