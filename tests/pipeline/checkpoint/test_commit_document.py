"""What readers of a checkpoint check: a COMMIT that was made right again, whose slices, shapes or files are not."""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import main
from pipeline import storage
from pipeline.checkpoint import format, pruning
from pipeline.checkpoint.commit_document import CommitRow, Files, coverage_fault
from pipeline.checkpoint.format import COMMIT, Progress
from pipeline.errors import DataError

FILE = "ema.rank00000.safetensors"


@st.composite
def partitions(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A number of elements, and stretches that are all of it, in any order."""
    total = draw(st.integers(1, 100))
    cuts = sorted({0, total, *draw(st.sets(st.integers(0, total), max_size=6))})
    return total, draw(st.permutations([[a, b - a] for a, b in pairwise(cuts)]))


def documents(total: int, places: list[list[int]]) -> tuple[Files, dict[str, Any]]:
    files = {f"ema.rank{i:05d}.safetensors": CommitRow(4000, "0" * 64, {"w": place}) for i, place in enumerate(places)}
    return files, {"ema": {"w": [total]}}


@given(partitions())
def test_every_partition_is_whole(partition: tuple[int, list[list[int]]]) -> None:
    assert coverage_fault(*documents(*partition)) == ""


@given(partitions(), st.data())
def test_every_gap_and_overlap_is_found(partition: tuple[int, list[list[int]]], data: st.DataObject) -> None:
    total, places = partition
    which = data.draw(st.integers(0, len(places) - 1))
    offset, count = places[which]
    longer, later = [offset, count + data.draw(st.integers(1, 9))], [offset + data.draw(st.integers(1, 9)), count]
    for wrong in ([], [[offset, count - 1]], [longer], [later], [[offset, count], [offset, count]]):
        assert coverage_fault(*documents(total, [*places[:which], *wrong, *places[which + 1 :]])), wrong


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a COMMIT and make its hash right again, as whoever writes one can."""
    body = json.loads((folder / COMMIT).read_text())["commit"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / COMMIT).write_text(json.dumps({"commit": body, "sha256": digest}))


def rewrite(folder: Path, data: bytes, name: str = FILE) -> None:
    """Put other content into a file, with the size and hash of it in COMMIT."""
    (folder / name).write_bytes(data)
    row = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(folder, lambda body: body["files"][name].update(row))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {name: {"w": torch.ones(8, 8), "b": torch.arange(3.0)} for name in ("generator", "ema")}
    pruning.save(str(tmp_path), Progress(100), tensors, {"classes": None}, 2)
    return tmp_path / "0000000100"


SLICES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a slice is missing": lambda body: body["files"][FILE]["slices"].pop("b"),
    "half of one": lambda body: body["files"][FILE]["slices"].update(w=[0, 32]),
    "one too far": lambda body: body["files"][FILE]["slices"].update(w=[1, 64]),
    "a larger shape": lambda body: body["shapes"]["ema"].update(w=[10**12]),
    "all of a larger shape": lambda body: (
        body["shapes"]["ema"].update(w=[10**12]), body["files"][FILE]["slices"].update(w=[0, 10**12]),
    ),
    "a negative shape": lambda body: body["shapes"]["ema"].update(w=[-8, -8]),
    "a shape of words": lambda body: body["shapes"]["ema"].update(w=["8", 8]),
    "a negative offset": lambda body: body["files"][FILE]["slices"].update(b=[-1, 4]),
    "an offset alone": lambda body: body["files"][FILE]["slices"].update(b=[0]),
    "no such tensor": lambda body: body["files"][FILE]["slices"].update(c=[0, 1]),
    "no file": lambda body: body.update(files={}),
    "no files": lambda body: body.pop("files"),
    "no shapes": lambda body: body.update(shapes=None),
    "no state": lambda body: body["files"].pop("state.json"),
    "files elsewhere": lambda body: body["files"].update({"../../state.json": body["files"]["state.json"]}),
    "bytes that are words": lambda body: body["files"][FILE].update(bytes="many"),
    "no format": lambda body: body.pop("format"),
    "time": lambda body: body.update(time="now"),
}  # fmt: skip


@pytest.mark.parametrize("case", SLICES)
def test_a_commit_that_contradicts_itself_is_damaged(folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    reseal(folder, SLICES[case])
    with pytest.raises(DataError, match=f"^{folder} has a damaged COMMIT.json") as refused:
        format.load(str(folder))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert main(["checkpoint", "verify", str(folder)]) == 65
    assert "damaged COMMIT.json" in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"[" * 3000, b'{"commit": NaN, "sha256": 1}', b"\xff\xfe", b'{"commit": {"format": 2}}'])
def test_what_is_no_commit_is_damaged(folder: Path, data: bytes) -> None:
    (folder / COMMIT).write_bytes(data)
    with pytest.raises(DataError, match=r"has a damaged COMMIT\.json"):
        format.load(str(folder))


def saved(**tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save(tensors)


B, W = torch.arange(3.0), torch.ones(8, 8)
CONTENT = {
    "another type": (saved(b=B.double(), w=W), "it has numbers of type F64, not F32"),
    "fewer numbers": (saved(b=B, w=torch.ones(300)[:63].clone()) + b" " * 400, "it has other tensors"),
    "one missing": (saved(w=torch.ones(99)), "it has other tensors"),
    "one more": (saved(b=B, w=W, x=B + 1), "it has other tensors"),
    "no header": (b"\xff" * 400, "its header"),
    "half a header": (saved(b=B, w=W)[:40] + b" " * 400, "its header"),
    "more behind it": (saved(b=B, w=W) + b"\0", "its tensors are not all of it"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_a_file_whose_tensors_are_not_its_slices_is_damaged(folder: Path, case: str) -> None:
    data, reason = CONTENT[case]
    rewrite(folder, data)
    found = format.load(str(folder))
    for read in (found.verify, lambda: found.tensors("ema")):
        with pytest.raises(DataError, match=rf"{FILE} is not what COMMIT\.json says: {reason}"):
            read()
    assert found.fault() == f"{FILE} is damaged" and format.newest(str(folder.parent)) is None


def test_no_memory_is_asked_for_what_a_file_cannot_hold(folder: Path) -> None:
    """4 TB, of which COMMIT says that two files have them: one of them is there, and small."""

    def change(body: dict[str, Any]) -> None:
        body["shapes"]["ema"]["w"] = [10**12]
        slices = {"w": [64, 10**12 - 64]}
        body["files"]["ema.rank00001.safetensors"] = {"bytes": 4 * 10**12, "sha256": "0" * 64, "slices": slices}

    reseal(folder, change)
    (folder / "ema.rank00001.safetensors").write_bytes(b"small")
    with pytest.raises(DataError, match=r"ema\.rank00001\.safetensors is cut: 5 bytes, not 4,000,000,000,000"):
        format.load(str(folder)).tensors("ema")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"[]", "state.json: Input should be an object"),
        (b"{", "state.json: Invalid JSON"),
        (b'{"progress": {"images": "many"}}', "state.json: progress: images: Input should be a valid integer"),
        (b'{"progress": {"images": -1}}', "state.json: progress: images: Input should be greater"),
    ],
)
def test_a_state_of_another_kind_is_one_line(folder: Path, state: bytes, reason: str) -> None:
    rewrite(folder, state, "state.json")
    with pytest.raises(DataError, match=reason):
        format.load(str(folder)).progress()


def test_figures_that_are_none_are_left_out(folder: Path) -> None:
    found = format.load(str(folder))
    storage.write_bytes(str(folder / format.EVALUATION), b'{"fid[x]": "low", "FID[y]": 3, "recipe_id": 7}')
    assert found.figure("fid") == ("7", 3.0)
    storage.write_bytes(str(folder / format.EVALUATION), b"[" * 3000)
    with pytest.raises(DataError, match=r"evaluation\.json: Invalid JSON"):
        found.figure("fid")
