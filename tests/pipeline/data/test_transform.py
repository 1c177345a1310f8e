"""A user's own transform of images, in the data loader."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from tests.support.loading import joined, stream, take


@pytest.mark.long
def test_a_transform_runs_in_processes_and_is_keyed_by_the_sample(shards: Path) -> None:
    options = {"global_batch": 64, "micro_batch": 64, "transform": "tests.support.transforms:shifted"}
    once, again = take(5, shards, **options), take(2, shards, **options, transform_workers=1, position=3 * 64)
    plain = take(5, shards, global_batch=64, micro_batch=64)
    assert torch.equal(joined(once[3:], "images"), joined(again, "images"))
    moved = joined(once, "images") != joined(plain, "images")
    assert moved.flatten(1).any(1).float().mean() > 0.9
    images, samples, epochs = (joined(once, field) for field in ("images", "samples", "epochs"))
    first, second = ({int(i): x for i, x, e in zip(samples, images, epochs, strict=True) if e == epoch} for epoch in (0, 1))
    assert any(not torch.equal(first[i], second[i]) for i in second)  # another one in another epoch


@pytest.mark.long
@pytest.mark.parametrize("transform", [None, "tests.support.transforms:shifted"])
def test_mirroring_in_the_stream_is_what_the_consumer_would_do(shards: Path, transform: str | None) -> None:
    options = {"flip": True, "global_batch": 64, "micro_batch": 32, "transform": transform}
    left, done = take(6, shards, **options), take(6, shards, **options, mirror=True)
    images, flips = joined(left, "images"), joined(left, "flips")
    assert 0.3 < flips.float().mean() < 0.7 and not joined(done, "flips").any()
    assert torch.equal(joined(done, "images"), torch.where(flips[:, None, None, None], images.flip(3), images))


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere:f", "No module named"), ("json:f", "has no attribute"), ("json", "PACKAGE.MODULE:FUNCTION")],
)
def test_a_transform_that_does_not_exist(shards: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"data.transform={name}.*{says}"):
        stream(shards, transform=name)


@pytest.mark.long
def test_a_transform_that_fails_is_the_users_to_mend(shards: Path) -> None:
    with (
        stream(shards, transform="tests.support.transforms:broken") as batches,
        pytest.raises(ConfigError, match=r"data.transform=tests.*broken failed on sample \d+: ZeroDivisionError"),
    ):
        next(batches)
