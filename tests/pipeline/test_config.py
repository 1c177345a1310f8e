from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.networks import GENERATORS
from pipeline.config import RunConfig, build, flatten, load_config, preset_names, to_yaml
from tests.support.mistakes import message


def tree() -> dict[str, Any]:
    """The least that a configuration has to say."""
    return {
        "run": "r",
        "total_images": 100,
        "model": {"resolution": 32, "num_classes": 4},
        "data": {"uri": "shards"},
        "batch": {"global_batch": 8, "norm_group": 8},
    }


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree()))
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_whole_configuration(name: str) -> None:
    config = load_config(name)
    assert config.total_images > 0
    assert load_config(name, ["run=elsewhere"]) == build({**flat_tree(config), "run": "elsewhere"})


def flat_tree(config: RunConfig) -> dict[str, Any]:
    return yaml.safe_load(to_yaml(config))


def test_what_is_written_is_read_back(file: str, tmp_path: Path) -> None:
    config = load_config(file, ["optim.betas=[0.5, 0.9]", "tracking.mode=off", "model.g_attention=[]", "optim.eps=1e-12"])
    assert build(flat_tree(config)) == config
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "again.yaml")) == config
    assert flatten(config)["optim.betas"] == [0.5, 0.9]


def test_arguments_win_over_the_file_and_the_file_over_its_preset(tmp_path: Path) -> None:
    preset = load_config("fashion-mnist")
    (tmp_path / "mine.yaml").write_text("preset: fashion-mnist\nrun: mine\nbatch:\n  micro_batch: 32\n")
    config = load_config(str(tmp_path / "mine.yaml"), ["run=typed", "optim.warmup=1000"])
    assert (config.run, config.batch.micro_batch, config.optim.warmup) == ("typed", 32, 1000)
    assert config.batch.global_batch == preset.batch.global_batch
    assert (config.model, config.checkpoint) == (preset.model, preset.checkpoint)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("optim.g_lr=1e-3", 0.001),  # YAML 1.1 takes it for text
        ("total_images=1e5", 100_000),
        ("total_images=100_000", 100_000),
        ("tracking.mode=off", "off"),  # YAML 1.1 takes it for False
        ("run=2024-10-01", "2024-10-01"),  # and this for a date
        ("run=a=b", "a=b"),
        ("data.flip=true", True),
        ("batch.micro_batch=null", None),
        ("run=[a", "[a"),  # no YAML at all
    ],
)
def test_arguments_mean_what_they_say(file: str, argument: str, value: Any) -> None:
    found = flatten(load_config(file, [argument]))[argument.partition("=")[0]]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batch.gobal_batch", "batch.global_batch"),
        ("global_batch", "batch.global_batch"),
        ("optim.norm_group", "batch.norm_group"),
        ("lr", "optim.g_lr"),
        ("optm.g_lr", "optim.g_lr"),
        ("total_image", "total_images"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: str, typed: str, meant: str, tmp_path: Path) -> None:
    expected = f"unknown config key {typed}: did you mean {meant}?"
    assert message(file, f"{typed}=8") == expected
    nested: Any = 8
    for part in reversed(typed.split(".")):
        nested = {part: nested}
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(nested))
    assert message(str(tmp_path / "typo.yaml")) == expected


def test_a_key_like_no_other_names_them_all(file: str) -> None:
    assert all(key in message(file, "xyzzy=1") for key in flatten(build(tree())))


@pytest.mark.parametrize(
    ("argument", "fault"),
    [
        ("optim.g_lr=fast", "optim.g_lr='fast'"),
        ("optim.g_lr=-1", "optim.g_lr=-1"),
        ("optim.betas=[0.5, 1]", "optim.betas=[0.5, 1.0]"),
        ("optim.betas=[a, 0.9]", "optim.betas.0='a'"),
        ("optim.warmup=-1", "optim.warmup=-1"),
        ("seed=1.5", "seed=1.5"),
        ("seed=-1", "seed=-1"),
        ("total_images=0", "total_images=0"),
        ("processes=0", "processes=0"),
        ("sample_every=-1", "sample_every=-1"),
        ("precision=fp16", "'bf16', 'fp32' or 'auto'"),
        ("zero.stage=4", "zero.stage=4"),
        ("activation_checkpointing=all", "'none' or 'blocks'"),
        ("zero.gradient_clipping=-1", "zero.gradient_clipping=-1"),
        ("checkpoint.keep=1", "at least 2"),
        ("checkpoint.every=0", "checkpoint.every=0"),
        ("model.resolution=48", "32, 64, 128"),
        ("batch.global_batch=0", "batch.global_batch=0"),
        ("data.read_ahead=0", "data.read_ahead=0"),  # a queue of 0 would have no end
        ("data.decode_threads=0", "data.decode_threads=0"),
        ("tracking.flush_seconds=0", "tracking.flush_seconds=0"),
        ("model=3", "model=3"),
        ("total_images.x=1", "total_images is a value"),
        ("nonsense", "'nonsense' must have the form key=value"),
    ],
)
def test_impossible_values_are_named(file: str, argument: str, fault: str) -> None:
    assert fault in message(file, argument)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ("objective.r1=1", "zero.stage=3"),
            "objective.r1: differentiates D twice, which ZeRO-3 cannot: set zero.stage=2",
        ),
        (("zero.stage=0", "zero.offload=optimizer"), "config zero.offload=optimizer: stage 0 shares no optimiser state"),
    ],
)
def test_what_cannot_go_together_is_named(file: str, arguments: tuple[str, ...], fault: str) -> None:
    assert fault in message(file, *arguments)


@pytest.mark.parametrize("key", ["run", "total_images", "data", "batch.norm_group", "model.num_classes"])
def test_a_missing_key_is_named_with_what_to_type(tmp_path: Path, key: str) -> None:
    config = tree()
    parent, _, last = key.rpartition(".")
    del (config[parent] if parent else config)[last]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    named = {"data": "data.uri"}.get(key, key)
    assert f"{named} is missing: set {named}=VALUE" in message(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize("content", [b"run: [", b"- run", b"", b"\xff\xd8\xff\xe0 an image", b"just text"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.yaml").write_bytes(content)
    assert "broken.yaml" in message(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("source", ["fashion_mnist", "missing.yaml", "/"])
def test_a_config_that_is_not_there_lists_the_presets(source: str) -> None:
    said = message(source)
    assert source in said and all(name in said for name in preset_names())


def test_sets_are_mixed_by_name() -> None:
    mixed = build(tree() | {"data": {"mix": {"cats": {"uri": "a"}, "dogs": {"uri": "b", "weight": 3}}}})
    assert mixed.data.mix["dogs"].weight == 3 and mixed.data.mix["cats"].weight == 1
    assert flatten(mixed)["data.mix.dogs.weight"] == 3
    assert "data.mix.cats.weight=0" in message("fashion-mnist", "data.mix.cats.uri=a", "data.mix.cats.weight=0")
    for key, near in (
        ("data.mix.cats.wieght=3", "data.mix.NAME.weight"),
        ("data.mix.cats.weight=0", "data.mix.cats.uri is missing"),
    ):
        assert near in message("fashion-mnist", key)


def test_the_later_of_a_set_and_a_mixture_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    """A preset, a file that starts from it, arguments: each may name its data as it likes."""
    (tmp_path / "mixed.yaml").write_text("preset: fashion-mnist\ndata:\n  mix:\n    cats:\n      uri: a\n  flip: true\n")
    (tmp_path / "saved.yaml").write_text(to_yaml(load_config(str(tmp_path / "mixed.yaml"))))
    (tmp_path / "set.yaml").write_text(f"preset: {tmp_path / 'saved.yaml'}\ndata:\n  uri: b\n")
    mixed, one = {"cats": "a"}, {}
    for source, overrides, uri, mix in (
        ("fashion-mnist", ["data.mix.cats.uri=a", "data.mix.dogs.uri=b"], "", {"cats": "a", "dogs": "b"}),
        ("mixed.yaml", [], "", mixed),
        ("saved.yaml", ["data.mix.dogs.uri=b"], "", {"cats": "a", "dogs": "b"}),
        ("saved.yaml", ["data.uri=b"], "b", one),
        ("set.yaml", [], "b", one),
        ("set.yaml", ["data.mix.cats.uri=a"], "", mixed),
        ("set.yaml", ["data.crop=20"], "b", one),
    ):
        data = load_config(source if "." not in source else str(tmp_path / source), overrides).data
        found = {name: Path(part.uri).name for name, part in data.mix.items()}
        assert (data.uri and Path(data.uri).name, found) == (uri, mix)
        assert data.lanes == 48
    both = "config data.uri and data.mix are both given: leave out data.uri, or every key of data.mix"
    assert message("fashion-mnist", "data.uri=b", "data.mix.cats.uri=a") == both
    (tmp_path / "both.yaml").write_text((tmp_path / "mixed.yaml").read_text() + "  uri: b\n")
    assert message(str(tmp_path / "both.yaml")) == both
    assert (
        load_config(str(tmp_path / "both.yaml"), ["data.uri=c"]).data
        == load_config("fashion-mnist", ["data.uri=c", "data.flip=true"]).data
    )


@pytest.mark.parametrize(
    ("cannot", "overrides", "says"),
    [
        ("compiles", ["compile=true"], "compile=true: the biggan G has no blocks to compile: set compile=false"),
        ("zero3", ["zero.stage=3"], "zero.stage=3: the biggan G cannot be split over ranks: set zero.stage=2"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused(
    cannot: str, overrides: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_config("fashion-mnist", overrides)
    monkeypatch.setitem(GENERATORS, "biggan", replace(GENERATORS["biggan"], **{cannot: False}))
    assert says in message("fashion-mnist", *overrides)
