"""The arithmetic of the loaders' comparison, and that its arms give what they are compared on."""

import io
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import data
from benchmarks.arms import data as data_arms
from benchmarks.others import loaders
from benchmarks.servers.latency import serve
from benchmarks.support.photos import SIZE, image_files, jpeg, make_images
from pipeline import storage
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest

COUNT = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and shards of 160 of them."""
    work = tmp_path_factory.mktemp("set")
    make_images(work / "images", COUNT)
    data._shards(work / "images", work / "shards", megabytes=1)
    return work


@pytest.mark.long
def test_pictures_are_the_same_every_time_and_of_the_size_that_is_promised() -> None:
    assert jpeg(7) == jpeg(7) != jpeg(8)
    assert Image.open(io.BytesIO(jpeg(0))).size == (SIZE, SIZE)
    assert 18_000 < np.mean([len(jpeg(number)) for number in range(40)]) < 22_000


def test_bars_are_judged_by_the_median_of_the_ratios_within_rounds() -> None:
    def round_of(**micros: float) -> dict[str, dict[str, float]]:
        found = {name.replace("__", "/"): {"cpu_s": 100 * value / 1e6, "samples": 100.0} for name, value in micros.items()}
        return {**found, "resume/local": {"resume_s": 0.5}}

    # A slow phase of the machine (the third round) changes both, and so no ratio.
    rounds = [round_of(same__ours=micros, same__webdataset=2.5 * micros, same__mds=2 * micros) for micros in (400, 410, 900)]
    assert data.cost(rounds[0]["same/ours"]) == pytest.approx(400)
    assert data.ratio(rounds, "same/webdataset", "same/ours") == pytest.approx(2.5)
    verdicts = {row["bar"]: (row["value"], row["ok"]) for row in data.judged(rounds)}
    assert verdicts["same/ours : same/webdataset"] == (pytest.approx(0.4), True)
    assert verdicts["same/ours : same/mds"] == (pytest.approx(0.5), False)
    assert verdicts["same/ours : same/litdata"] == (None, False)  # what was not measured does not hold
    assert verdicts["resume/local, seconds"] == (0.5, True)


def test_the_time_of_descendants_counts_while_they_live_and_afterwards() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    before = data_arms.cpu_seconds()
    command = [sys.executable, "-c", burn]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "\n"
        alive = data_arms.cpu_seconds()
        child.communicate("\n")
    assert alive - before >= 0.28 and data_arms.cpu_seconds() >= alive


@pytest.mark.long
def test_what_is_measured_is_one_epoch_after_another_that_warms_up() -> None:
    epochs: list[int] = []

    def epoch() -> list[Tensor]:
        epochs.append(len(epochs))
        return [torch.zeros(3, 1)] * 20 + [torch.zeros(1, 1)]

    found = data_arms.measured(epoch)
    assert epochs == [0, 1] and found["samples"] == 61 and found["cpu_s"] >= 0 and found["per_second"] > 0


@pytest.mark.long
def test_our_arm_finishes_a_batch_as_the_others_finish_an_image(folder: Path) -> None:
    uri = str(folder / "shards")
    config, manifest = DataConfig(uri=uri, crop=loaders.CROP, flip=True), load_manifest(uri)
    with (
        DataLoader(config, manifest, seed=0, global_batch=32, micro_batch=32, rank=0, world_size=1, mirror=True) as stream,
        DataLoader(
            DataConfig(uri=uri, flip=True), manifest, seed=0, global_batch=32, micro_batch=32, rank=0, world_size=1
        ) as plain,
    ):
        batch, whole = next(stream), next(plain)
    assert 0 < whole.flips.sum() < 32 and not batch.flips.any() and torch.equal(batch.samples, whole.samples)
    pairs = zip(whole.images, whole.flips, strict=True)
    expected = [loaders.cropped(image.permute(1, 2, 0), bool(flip)) for image, flip in pairs]
    finished = data_arms.Finish(normalise=False)(batch)
    assert torch.equal(finished, torch.stack(expected).permute(0, 3, 1, 2))
    normal = (finished.float() / 255 - loaders.MEAN[:, None, None]) / loaders.STD[:, None, None]
    assert torch.allclose(data_arms.Finish(normalise=True)(batch), normal, atol=1e-6)


def test_the_recipe_gives_what_is_decoded_by_hand() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(jpeg(3))).convert("RGB"))[16:240, 16:240].astype(np.float32) / 255
    normal = torch.from_numpy((pixels - loaders.MEAN.numpy()) / loaders.STD.numpy()).permute(2, 0, 1)
    torch.manual_seed(0)
    found = [loaders.recipe(jpeg(3)) for _ in range(8)]
    straight = [torch.allclose(image, normal, atol=1e-5) for image in found]
    mirrored = [torch.allclose(image, normal.flip(-1), atol=1e-5) for image in found]
    assert any(straight) and any(mirrored) and all(a != b for a, b in zip(straight, mirrored, strict=True))


@pytest.mark.parametrize("name", ["webdataset", "folder"])
@pytest.mark.parametrize("transform", [loaders.same_decoder, loaders.recipe])
def test_a_peer_gives_every_sample_once(name: str, transform: loaders.Transform, folder: Path, tmp_path: Path) -> None:
    labels: Counter[int] = Counter()
    for images, classes in loaders.LOADERS[name](str(folder), transform, tmp_path):
        same = transform is loaders.same_decoder
        assert images.shape[1:] == ((224, 224, 3) if same else (3, 224, 224))
        assert images.dtype == (torch.uint8 if same else torch.float32)
        labels.update(torch.as_tensor(classes).tolist())
    assert labels == Counter(label for _, label in image_files(folder / "images")) and labels.total() == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(loaders.PACKERS))
def test_a_peer_that_has_a_format_of_its_own(name: str, folder: Path) -> None:
    if not loaders.package_version(name):
        pytest.skip(f"{loaders.PACKAGES[name]} is not installed")
    data.run_arm(f"pack/{name}", str(folder), {})
    assert data.run_arm(f"same/{name}", str(folder), {})["samples"] >= COUNT


@pytest.mark.long
def test_the_server_answers_late_with_the_bytes_that_were_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(folder, latency=0.05)
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    (name, *_) = (shard.name for shard in load_manifest(str(folder / "shards")).shards)
    whole = (folder / "shards" / name).read_bytes()
    for uri in (f"{address}/shards/{name}", f"s3://shards/{name}"):
        began = time.monotonic()
        assert storage.read_range(uri, 1000, 70_000) == whole[1000:70_000]
        assert time.monotonic() - began >= 0.05
        assert storage.size(uri) == len(whole) and storage.read_bytes(uri) == whole
        with pytest.raises(storage.NotFoundError):
            storage.read_bytes(uri + "x")
    with DataLoader(
        DataConfig(uri="s3://shards"),
        load_manifest("s3://shards"),
        seed=0,
        global_batch=64,
        micro_batch=64,
        rank=0,
        world_size=1,
    ) as stream:
        assert next(stream).images.shape == (64, 3, SIZE, SIZE)
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_the_large_set_is_one_shard_under_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "RESUME_SHARDS", 30)
    monkeypatch.setattr(data, "RESUME_SHARD", 40)
    shards = data.prepare_resume(tmp_path)
    manifest = load_manifest(str(shards))
    assert manifest.samples == sum(manifest.class_counts) == 1200 and len(manifest.shards) == 30
    assert len({path.stat().st_ino for path in shards.glob("*.tar")}) == 1
    found = data_arms.resume(str(shards))
    assert found["samples"] == 1200 and found["resume_s"] > 0 and found["mib_read"] > 0
    assert data.prepare_resume(tmp_path) == shards  # again, over what is there


@pytest.mark.long
def test_an_arm_that_fails_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no shards at"):
        data.run_arm("stack/ours1", str(tmp_path), {})
