"""Foreign files that say more than they hold, or something else than numbers: one line, before memory is asked for."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, DataError
from tests.support.foreign_cases import TINY, read, refused, save, states


def test_tensors_are_no_more_than_the_bytes_of_their_file(tmp_path: Path) -> None:
    """Views whose strides are 0 have a shape of any size: they are refused before one of them is copied."""
    found = states(TINY)
    save(tmp_path, TINY, found)
    torch.save(found["G"] | {"linear.weight": torch.zeros(1).expand(10**6, 10**3)}, tmp_path / "G.pth")
    with refused(DataError, "G.pth has", "are views of the same numbers", "clone()"):
        read(tmp_path)
    torch.save({"x": torch.zeros(1).expand(50_000_000, 1000)}, tmp_path / "G.pth")
    with refused(DataError, "G.pth has", "tensors of 200,000,000,000"):
        read(tmp_path)
    torch.save({"state": [{0: {"exp_avg": torch.zeros(1).expand(10**9)}}]}, tmp_path / "G.pth")
    with refused(DataError, "G.pth has", "tensors of 4,000,000,000"):
        read(tmp_path)
    torch.save(found["G"], tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "G.pth", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for member in whole.namelist():
            out.writestr(member, bytes(10**6) if member.endswith("data/0") else whole.read(member))
    with refused(DataError, "G.pth is compressed or damaged"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("itr", "many"), ("itr", -1), ("batch_size", 10**30), ("BN_eps", "small"), ("BN_eps", float("nan")), ("SN_eps", -1.0)],
)
def test_numbers_of_a_run_are_in_range(tmp_path: Path, key: str, value: Any) -> None:
    save(tmp_path, TINY, states(TINY))
    torch.save(
        {"itr": 7, "config": {}} | ({"itr": value} if key == "itr" else {"config": {key: value}}), tmp_path / "state_dict.pth"
    )
    with refused(DataError, "state_dict.pth", f"{key}: Input should be"):
        read(tmp_path)


@pytest.mark.parametrize(
    "weights", [{"blocks.0.0.conv1.weight": 1}, {"shared.weight": 1}, {"linear.weight": 3}, {"\x1b[31m\nx": 2}, {"x" * 300: 2}]
)
def test_other_tensors_are_one_line(tmp_path: Path, weights: dict[str, int]) -> None:
    found = states(TINY)
    found["G"] |= {name: torch.ones([2] * dimensions) for name, dimensions in weights.items()}
    save(tmp_path, TINY, found)
    with pytest.raises((ConfigError, DataError)) as refusal:
        read(tmp_path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 500
