"""Weights to start from: what is said of those with other classes leads to a training."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError
from pipeline.runs.initial_weights import ema_note, explicit, initial_checkpoint
from pipeline.runs.run_folder import check_model
from tests.support.saved_run import save_checkpoint, save_run


def start(config: RunConfig, num_classes: int, uri: str, init: str | None) -> None:
    """Do what a start of a training does with these."""
    changed = replace(config, model=replace(config.model, num_classes=num_classes), init=init)
    changed = replace(changed, data=replace(config.data, uri=uri))
    check_model(changed, load_manifest(uri))
    initial_checkpoint(changed)


@pytest.mark.parametrize("typed", [4, 7])
def test_weights_of_more_classes_start_on_shards_indexed_with_their_names(
    typed: int, tmp_path: Path, shards_grey: Path
) -> None:
    """Whichever number of classes is set, the answer is the same and holds."""
    uri = str(shards_grey)
    config = save_run(tmp_path / "run", shards_grey, mode="off")
    source = tmp_path / "source of weights"
    larger = replace(config, run=str(source), model=replace(config.model, num_classes=7))
    save_checkpoint(replace(larger, checkpoint=replace(config.checkpoint, uri=str(source))), 100)
    with pytest.raises(ConfigError) as caught:
        start(config, typed, uri, str(source))
    said = str(caught.value)
    assert f"init={source} has 7 classes, the shards at {uri} have 4" in said and "type" not in said
    found = re.search(r"`biggan (.*?)`, then set model.num_classes=7 data.uri=DIR", said)
    assert found
    names = tmp_path / "names"
    names.write_text("".join(f"{name}\n" for name in (*load_manifest(uri).classes, "x", "y", "z")))
    places = {"DIR": str(tmp_path / "again"), "FILE": str(names)}
    assert main([places.get(word, word) for word in shlex.split(found[1])]) == 0
    start(config, 7, places["DIR"], str(source))
    start(config, 4, uri, None)  # init=null


def test_weights_of_fewer_classes_are_not_carried_over(tmp_path: Path, shards_grey: Path) -> None:
    config = save_run(tmp_path / "run", shards_grey, mode="off")
    fewer = replace(config.model, num_classes=2)
    save_checkpoint(replace(config, model=fewer, checkpoint=replace(config.checkpoint, uri=str(tmp_path / "source"))), 100)
    for typed in (2, 4):
        with pytest.raises(ConfigError, match=r"has 2 classes, the shards at .* have 4.*: set init=null to train without them"):
            start(config, typed, str(shards_grey), str(tmp_path / "source"))
    with pytest.raises(ConfigError, match=r"model.num_classes=3 but the shards"):
        start(config, 3, str(shards_grey), None)


def test_an_ema_that_stays_the_source_is_told(tmp_path: Path, shards_grey: Path) -> None:
    tuned = replace(save_run(tmp_path / "run", shards_grey, mode="off"), init="runs/a", total_images=500_000)

    def noted(half_life: float, **other: Any) -> str:
        return ema_note(replace(tuned, optim=replace(tuned.optim, ema_half_life=half_life), **other))

    said = noted(28_390_000)
    assert "after 500,000 images the EMA" in said and "still is 98.8% init=runs/a: set optim.ema_half_life=50000" in said
    assert noted(50_000) == ""
    assert noted(28_390_000, total_images=675_840_000) == noted(28_390_000, init=None) == noted(0) == ""


@pytest.mark.parametrize("d", ["biggan", "biggan-deep", "strided"])
@pytest.mark.parametrize("g", ["biggan", "biggan-deep", "transposed"])
def test_what_a_message_says_to_set_makes_the_same_networks(g: str, d: str) -> None:
    fields: dict[str, Any] = {"generator": g, "discriminator": d, "resolution": 64, "num_classes": 3, "ch": 16}
    config = ModelConfig(**fields)
    assert explicit(ModelConfig(**explicit(config))) == explicit(config)
