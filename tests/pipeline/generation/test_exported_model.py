"""Folders of exported models that were changed or made up: one line, and no network before its tensors fit."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.generation import export
from pipeline.generation.load import load_generator
from tests.support.saved_run import save_run, short_standing_statistics


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Plain files of a generator. Read only."""
    folder = tmp_path_factory.mktemp("files")
    save_run(folder / "run", shards, mode="off")
    with pytest.MonkeyPatch.context() as patch:
        short_standing_statistics(patch)
        export.save_files(load_generator(folder / "run"), folder / "exported")
    return folder / "exported"


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no network at all": ({"model": {}}, "resolution"),
    "a wide network": (
        {"ch": 100_000},
        r"does not fit the network that it names: it has \S+ \[8\], the network has \S+ \[400000\]",
    ),
    "a wider one": ({"ch": 600}, "does not fit the network that it names"),
    "wider than can be": ({"ch": 10**12}, "ch: Input should be less than or equal to 1048576"),
    "widths": ({"g_widths": [10**6] * 4}, "does not fit the network that it names"),
    "many widths": ({"g_widths": [1] * 1000}, "g_widths: List should have at most 16 items"),
    "many classes": ({"num_classes": 10**6}, "names 4 classes, its network has 1000000"),
    "words": ({"ch": "wide"}, "ch: Input should be a valid integer"),
    "a negative width": ({"ch": -1}, "ch: Input should be greater than or equal to 0"),
    "no such size": ({"resolution": 33}, "must be one of 32, 64"),
    "another kind": ({"generator": "evil"}, "generator: Input should be 'biggan'"),
    "no number": ({"bn_eps": float("nan")}, "bn_eps: Input should be"),
    "attention": ({"g_attention": [7]}, "no such size in G"),
    "classes are numbers": ({"classes": [1, 2, 3, 4]}, r"classes\.0: Input should be a valid string"),
    "more classes": ({"classes": ["a"] * 5}, "names 5 classes, its network has 4"),
    "images": ({"images": -1}, "images: Input should be greater"),
    "hash": ({"weights_sha256": 3}, "weights_sha256: Input should be a valid string"),
    "golden": ({"golden": {"seed": 0, "labels": [0] * 65}}, r"golden\.labels: List should have at most 64"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_checked_before_a_network_takes_memory(exported: Path, tmp_path: Path, case: str) -> None:
    changed, reason = SETTINGS[case]
    shutil.copytree(exported, tmp_path / "copy")
    about = tmp_path / "copy" / "config.json"
    settings = json.loads(about.read_text())
    for key, value in changed.items():
        (settings if key in settings else settings["model"])[key] = value
    about.write_text(json.dumps(settings))
    with pytest.raises(DataError, match=reason) as refused:
        load_generator(tmp_path / "copy")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {}, "does not fit the network that it names: it has no"),
        (lambda state: state | {"more": torch.ones(1)}, r"it has more \[1\], the network has no more"),
        (
            lambda state: state | {"output.bias": torch.ones(7)},
            r"it has output\.bias \[7\], the network has output",
        ),
        (lambda state: state | {"output.bias": torch.ones(3).long()}, r"output\.bias is of torch\.int64"),
        (None, "is damaged: SafetensorError"),
    ],
)
def test_weights_have_to_fit_their_settings(exported: Path, tmp_path: Path, change: Any, reason: str) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    about, weights = (tmp_path / "copy" / name for name in ("config.json", "generator.safetensors"))
    state = safetensors.torch.load(weights.read_bytes())
    weights.write_bytes(safetensors.torch.save(change(state)) if change else b"\xff" * 100)
    settings = json.loads(about.read_text()) | {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    about.write_text(json.dumps(settings))
    with pytest.raises(DataError, match=reason):
        load_generator(tmp_path / "copy")


def test_a_setting_of_a_later_version_is_not_left_out(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    about = tmp_path / "copy" / "config.json"
    settings = json.loads(about.read_text())
    settings["model"]["new"] = True
    about.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"config\.json sets 'new', which this version does not know"):
        load_generator(tmp_path / "copy")
