"""One generator from every place that it can be loaded from, with the statistics that belong to its latents."""

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batchnorm import batch_norms, standing_statistics
from model.config import ModelConfig
from model.latents import RandomStream, Truncation, latents, random_labels
from model.networks import build_generator
from model.spectral import power_iteration
from pipeline import storage
from pipeline.checkpoint import format, pruning
from pipeline.checkpoint.format import Progress
from pipeline.errors import ConfigError, DataError
from pipeline.generation import export
from pipeline.generation.load import load_generator, recorded_at
from tests.support.saved_run import save_checkpoint, save_run, short_standing_statistics

CONFIG = ModelConfig(resolution=32, num_classes=3, ch=4, shared_dim=8, g_attention=(16,))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    short_standing_statistics(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("generators") / "run"
    save_checkpoint(save_run(folder, shards, mode="off"), 8192)
    return folder


def imported(uri: str, truncations: list[float], changed: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Save what `biggan import` saves, at 100 images; returns what the generator is then to be."""
    torch.manual_seed(1)
    network = build_generator(CONFIG)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    vectors = {name: tensor.roll(1) for name, tensor in state.items() if name.endswith((".u", ".v"))}
    parts = {"generator": state, "ema": {n: 2 * p.detach() for n, p in network.named_parameters()}, "ema_vectors": vectors}
    recorded = {n: torch.rand(len(truncations), *t.shape) + 0.5 for n, t in state.items() if n.endswith((".mean", ".var"))}
    parts["statistics"] = {"truncations": torch.tensor(truncations), **recorded}
    saved = {"model": asdict(CONFIG), "classes": None, "source": {"format": "test"}} | (changed or {})
    pruning.save(uri, Progress(100), {k: v for k, v in parts.items() if k != "statistics" or truncations}, saved, keep=2)
    return state | parts["ema"] | vectors | recorded


@pytest.mark.long
def test_a_run_its_checkpoints_and_its_export_are_the_same_generator(run: Path, tmp_path: Path) -> None:
    from_run = load_generator(run)
    assert from_run.images == 8192 and from_run.classes == ("bars", "blob", "checks", "stripes")
    assert not from_run.generator.training
    away = tmp_path / "away"
    shutil.copytree(run / "checkpoints", away)
    export.save_model(from_run, tmp_path / "exported")
    for source in (away, away / "0000008192", tmp_path / "exported"):
        other = load_generator(source)
        assert (other.weights_sha256, other.classes, other.config) == (
            from_run.weights_sha256,
            from_run.classes,
            from_run.config,
        )
        assert other.images == 8192 and not other.generator.training
    for source in (run, away):
        older = load_generator(source, 4096)
        assert older.images == 4096 and older.weights_sha256 != from_run.weights_sha256
    assert load_generator(away / "0000004096").weights_sha256 == older.weights_sha256
    truncated = [load_generator(source, truncation=0.5).weights_sha256 for source in (run, tmp_path / "exported")]
    assert truncated[0] == truncated[1] != from_run.weights_sha256


def test_a_checkpoint_by_uri() -> None:
    uri = "memory://generators/imported"
    imported(uri, [])
    assert load_generator(uri).images == 100 and load_generator(f"{uri}/0000000100").config == CONFIG


@pytest.mark.long
@pytest.mark.parametrize(
    ("truncation", "method", "standing"),
    [
        (None, "truncated-normal", None),
        (0.5, "truncated-normal", None),
        (0.5, "scaled-normal", None),
        (1.0, "scaled-truncated-normal", 200),
    ],
)
def test_standing_statistics_are_those_of_the_latents(
    run: Path, truncation: float | None, method: Truncation, standing: int | None
) -> None:
    trained = load_generator(run, None, truncation, method, standing)
    saved = format.newest(str(run / "checkpoints"))
    assert saved
    by_hand = build_generator(trained.config)
    by_hand.load_state_dict(saved.tensors("generator") | saved.tensors("ema"))
    power_iteration(by_hand, 10)
    # 200 samples are a full batch and a part; 32 is what this test's `quick` makes of the default.
    sizes = [(0, 128), (128, 72)] if standing else [(0, 32)]
    batches = [
        (
            latents(0, RandomStream.STANDING, start, n, dim=trained.config.latent_dim, truncation=truncation, method=method),
            random_labels(0, RandomStream.STANDING, start, n, 4),
        )
        for start, n in sizes
    ]
    standing_statistics(by_hand, batches)
    for ours, theirs in zip(batch_norms(trained.generator), batch_norms(by_hand), strict=True):
        torch.testing.assert_close(ours.mean.cpu(), theirs.mean)
        torch.testing.assert_close(ours.var.cpu(), theirs.var)
    again = load_generator(run)
    again.prepare(truncation, method, standing)
    assert all(
        torch.equal(a.var, b.var) for a, b in zip(batch_norms(again.generator), batch_norms(trained.generator), strict=True)
    )


def test_an_import_is_used_as_its_source_used_it(tmp_path: Path) -> None:
    """Averaged weights, their own vectors without further power iteration, recorded statistics, no names of classes."""
    wanted = imported(str(tmp_path / "one"), [math.inf])
    for truncation in (None, 0.3):
        trained = load_generator(tmp_path / "one", truncation=truncation)
        assert (
            not trained.named
            and trained.classes == ("0", "1", "2")
            and trained.config == CONFIG
            and not trained.generator.training
        )
        for name, tensor in trained.generator.state_dict().items():
            expected = wanted[name][0] if name.endswith((".mean", ".var")) else wanted[name]
            assert torch.equal(tensor.cpu(), expected), name


def test_tables_by_truncation_and_standing_statistics_instead(tmp_path: Path) -> None:
    wanted = imported(str(tmp_path / "some"), [0.0, 0.5, 1.0])
    name = "output_bn.norm.mean"
    trained = load_generator(tmp_path / "some", truncation=0.75)
    torch.testing.assert_close(trained.generator.state_dict()[name].cpu(), wanted[name][1:].mean(0))
    trained.prepare(0.5)
    assert torch.equal(trained.generator.state_dict()[name].cpu(), wanted[name][1])
    trained.prepare(0.5, standing=16)
    anew = load_generator(tmp_path / "some", truncation=0.5, standing=16)
    assert anew.weights_sha256 == load_generator(tmp_path / "some", truncation=0.5, standing=16).weights_sha256
    for generator in (trained.generator, anew.generator):
        assert not torch.allclose(generator.state_dict()[name].cpu(), wanted[name][1], atol=0.01)
    assert torch.equal(trained.generator.state_dict()[name], anew.generator.state_dict()[name])


@pytest.mark.long
@settings(max_examples=200)
@given(truncation=st.floats(0.001, 1.5))
def test_tables_are_read_as_hugging_face_reads_them(truncation: float) -> None:
    table = torch.rand(51, 3, generator=torch.Generator().manual_seed(0))
    found = recorded_at({"truncations": torch.linspace(0, 1, 51), "bn.mean": table}, truncation)["bn.mean"]
    # BigGANBatchNorm.forward: the step below and the share of the next one.
    share, place = math.modf(min(truncation, 1.0) / 0.02)
    below = int(place)
    wanted = table[below] if share == 0 or below == 50 else table[below] * (1 - share) + table[below + 1] * share
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_ends_of_the_tables() -> None:
    recorded = {"truncations": torch.tensor([0.2, 0.4]), "bn.var": torch.tensor([[1.0], [3.0]])}
    found = [recorded_at(recorded, t)["bn.var"].item() for t in (0.1, 0.2, 0.3, 0.4, 9.0, None)]
    assert found == pytest.approx([1, 1, 2, 3, 3, 3])


def test_a_place_without_a_generator_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source, there in ((tmp_path / "nowhere", "nothing"), (tmp_path, "notes.txt")):
        with pytest.raises(ConfigError, match=rf"no model .*config\.yaml.*COMMIT\.json.*artifacts/config\.json; found {there}"):
            load_generator(source)


def test_checkpoints_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint at 5 images; it has: 8192, 4096"):
        load_generator(run, 5)
    pruning.save(str(tmp_path / "old"), Progress(7), {"generator": {}, "ema": {}}, {}, keep=2)
    with pytest.raises(ConfigError, match=r"0000000007 does not say which network it holds: name the folder of its run"):
        load_generator(tmp_path / "old")
    imported(str(tmp_path / "damaged"), [])
    (tmp_path / "damaged" / "0000000100" / "ema.rank00000.safetensors").write_bytes(b"0")
    with pytest.raises(DataError, match="is damaged: its SHA-256 is not that in COMMIT"):
        load_generator(tmp_path / "damaged", 100)


def test_exports_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    export.save_model(load_generator(run), tmp_path / "exported")
    with pytest.raises(ConfigError, match=r"--checkpoint 4096: .* is an exported model"):
        load_generator(tmp_path / "exported", 4096)
    weights = str(tmp_path / "exported" / "artifacts" / "generator.safetensors")
    storage.write_bytes(weights, storage.read_bytes(weights)[:-1] + b"\1")
    with pytest.raises(DataError, match=r"generator\.safetensors is damaged"):
        load_generator(tmp_path / "exported")
    for text in (b"{", b"{}", b"[]", b"[" * 3000, b"\xff"):
        storage.write_bytes(weights.replace("generator.safetensors", "config.json"), text)
        with pytest.raises(DataError, match=r"config\.json is damaged"):
            load_generator(tmp_path / "exported")


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "no network": ({"model": 3}, "model is not an object"),
    "a wide network": ({"model": asdict(CONFIG) | {"ch": 100_000}}, "does not fit the network that it names"),
    "classes are numbers": ({"classes": [1, 2, 3]}, "classes are not names"),
    "more classes": ({"classes": ["a", "b"]}, "2 classes, but a network of 3"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_checkpoint_that_is_made_up(tmp_path: Path, case: str) -> None:
    changed, reason = STATES[case]
    imported(str(tmp_path), [0.5], changed)
    with pytest.raises(DataError, match=reason):
        load_generator(tmp_path)


@pytest.mark.parametrize("left", [0, 3])
def test_weights_that_are_not_averaged_are_not_drawn_as_averages(tmp_path: Path, left: int) -> None:
    torch.manual_seed(1)
    state = {name: tensor.clone() for name, tensor in build_generator(CONFIG).state_dict().items()}
    parts = {"generator": state, "ema": {name: state[name] for name in list(state)[:left]}}
    saved = {"model": asdict(CONFIG), "classes": None}
    pruning.save(str(tmp_path), Progress(100), {name: part for name, part in parts.items() if part}, saved, keep=2)
    with pytest.raises(DataError, match="has no average of "):
        load_generator(tmp_path)


def test_statistics_that_do_not_fit(tmp_path: Path) -> None:
    imported(str(tmp_path), [math.nan, 0.5])
    with pytest.raises(DataError, match="its batch-norm statistics do not fit its network"):
        load_generator(tmp_path)
