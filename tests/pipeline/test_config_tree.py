"""Text as configuration: what is typed is what is meant, nothing is dropped, and a path means the same from everywhere."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipeline import config_tree
from pipeline.config import RunConfig, build, flatten, load_config, located, to_yaml
from pipeline.data.loader import DataConfig, PartConfig
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError
from pipeline.runs.run_folder import load_run_config, prepare
from tests.support.mistakes import message

BIGGAN = to_yaml(load_config("cifar10"))


@pytest.mark.long
@settings(max_examples=30)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
@example("/x/my run #3")
@example("01")
@example("yes")
@example("1e5")
@example("a: b")
@example("[x]")
@example("{x: 1}")
@example("'quoted'")
@example("&anchor")
@example("a=b=c")
@example(" leading and trailing ")
@example("2024-10-01")
def test_any_text_survives_from_the_command_line_to_the_file_and_back(text: str) -> None:
    words = [f"run={text}", f"tracking.experiment={text}", f"data.mix.a.uri={text}", f"data.transform={text}"]
    tree = yaml.safe_load(BIGGAN)
    config_tree.override(tree, ["data.uri=", "total_images=1", *words], RunConfig)
    config = build(tree)
    found = config.run, config.tracking.experiment, config.data.mix["a"].uri, config.data.transform or "null"
    assert found == (text,) * 4
    written = to_yaml(config)
    assert build(yaml.safe_load(written)) == config  # as a run's folder is read
    assert build(config_tree.parse(written, RunConfig, "a file")) == config  # as a CONFIG is


@pytest.mark.parametrize("word", ["01", "yes", "1e5", "2024-10-01", "1:30", "0x1f", "~", "off", "on"])
def test_a_text_key_of_a_file_is_its_text_too(word: str) -> None:
    tree = config_tree.parse(f"run: {word}\ndata:\n  mix:\n    {word}:\n      uri: {word}\n", RunConfig, "a file")
    empty = None if word == "~" else word
    assert tree == {"run": empty, "data": {"mix": {word: {"uri": empty}}}}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed=010", 10),
        ("total_images=1_000", 1000),
        ("init=null", None),
        ("checkpoint.keep_best=null", None),
        ("optim={g_lr: 0.5}", 0.5),
    ],
)
def test_other_values_are_plain_words(argument: str, value: Any) -> None:
    key = "optim.g_lr" if argument.startswith("optim") else argument.partition("=")[0]
    before, found = (flatten(load_config("biggan-128", words)) for words in ([], [argument]))
    assert found[key] == value
    assert {k: v for k, v in found.items() if k != key} == {k: v for k, v in before.items() if k != key}


@pytest.mark.parametrize("argument", ["seed=3 #5", "total_images=1:30", "seed=0x10", "batch.global_batch=64 # large"])
def test_no_part_of_a_value_is_dropped(argument: str) -> None:
    assert argument.partition("=")[2] in message("biggan-128", argument)


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim:\n  g_lr: 1\nseed: 3\noptim:\n  d_lr: 2\n", "optim is given twice, in line 1 and line 4"),
        ("seed: 3\nseed: 3\n", "seed is given twice, in line 1 and line 2"),
        ("optim:\n  g_lr: 1\n  d_lr: 2\n  g_lr: 3\n", "optim.g_lr is given twice, in line 2 and line 4"),
        ("data:\n  mix:\n    a: {uri: x}\n    'a': {uri: y}\n", "data.mix.a is given twice, in line 3 and line 4"),
        ("preset: a\npreset: b\n", "preset is given twice, in line 1 and line 2"),
        ("optim: {g_lr: 1, g_lr: 1}\n", "optim.g_lr is given twice, in line 1 and line 1"),
        ("? [a]\n: 1\n", "line 1: a key must be a word"),
        ("optim:\n\tg_lr: 1\n", "cannot start any token"),
        ("seed: &a\n  b: *a\n", "recursive"),
        ("run: !!python/name:os.system x\n", "could not determine a constructor"),
        ("seed: !!int x\n", "invalid literal"),
        ("run: a\n---\nrun: b\n", "expected a single document"),
        ("run: " + "[" * 2000, "is not YAML"),
        ("<<: 3\n", "expected a mapping"),
    ],
)
def test_a_file_that_says_two_things_or_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    found = message(str(tmp_path / "own.yaml"))
    assert said in found and "own.yaml" in found


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("run=", "set run=FOLDER"),
        ("seed=", "set seed=VALUE"),
        ("init=", "set init=null for none, or init=VALUE"),
        ("batch.micro_batch=", "set batch.micro_batch=null for none, or batch.micro_batch=VALUE"),
        ("optim=", "set optim=VALUE"),
    ],
)
def test_nothing_is_no_value(argument: str, advice: str) -> None:
    found = message("biggan-128", argument)
    assert f"{argument.removesuffix('=')}" in found and found.endswith(f"is empty: {advice}")


def test_a_runs_folder_is_no_config_but_has_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert f"did you mean {tmp_path}/config.yaml?" in message(str(tmp_path))


def test_what_is_merged_in_gives_way(tmp_path: Path) -> None:
    text = "preset: biggan-128\ndata:\n  mix:\n    a: &set {uri: /x, weight: 2}\n    b: {<<: *set, uri: /y}\n  uri: ''\n"
    (tmp_path / "own.yaml").write_text(text)
    mixed = load_config(str(tmp_path / "own.yaml")).data.mix
    assert mixed == {"a": PartConfig("/x", 2), "b": PartConfig("/y", 2)}


@pytest.mark.parametrize("files", [["itself"], ["a", "b"], ["a", "b", "c"]])
def test_presets_that_lead_back_are_a_line(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, base in zip(files, [*files[1:], files[0]], strict=True):
        Path(name).write_text(f"preset: {base}\n")
    assert f"preset: {files[0]} leads back to it ({' -> '.join([*files, files[0]])})" in message(files[0])


def test_two_values_for_a_key_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "fashion-mnist", "model.ch=8", "seed=1", "model.ch=16"]) == 78
    assert "model.ch is given twice, as model.ch=8 and as model.ch=16: leave one out" in capsys.readouterr().err
    config_tree.refuse_twice(["seed=1", "seed=1"])  # says one thing


def test_a_name_that_is_not_utf8_is_refused() -> None:
    assert "is not UTF-8" in message("fashion-mnist", f"run={os.fsdecode(b'caf' + bytes([0xE9]))}")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("shards", "{cwd}/shards"),
        ("./shards/", "{cwd}/shards"),
        ("../shards", "{above}/shards"),
        ("link/../shards", "{cwd}/link/../shards"),
        ("~/shards", "{home}/shards"),
        ("/abs/shards/", "/abs/shards/"),
        ("a b#c", "{cwd}/a b#c"),
        ("s3://bucket/shards", "s3://bucket/shards"),
        ("file:///x", "file:///x"),
        ("models:/birds@champion", "models:/birds@champion"),
    ],
)
def test_a_path_is_kept_absolute(typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cwd", "home", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cwd" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = meant.format(cwd=tmp_path / "cwd", home=tmp_path / "home", above=tmp_path)
    words = [f"{key}={typed}" for key in ("data.uri", "checkpoint.uri", "init", "data.cache")]
    found = flatten(load_config("biggan-128", words))
    assert {found[key] for key in ("data.uri", "checkpoint.uri", "init", "data.cache")} == {place}
    mixed = load_config("biggan-128", ["data.uri=", f"data.mix.a.uri={typed}", "data.transform=a.b:c"]).data
    assert (mixed.uri, mixed.mix["a"].uri, mixed.transform) == ("", place, "a.b:c")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sqlite:///rel.db", "sqlite:///{cwd}/rel.db"),
        ("sqlite:///~/rel.db", "sqlite:///{home}/rel.db"),
        ("sqlite:////abs/x.db", "sqlite:////abs/x.db"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:///{cwd}/x.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql+psycopg2://h/x", "postgresql+psycopg2://h/x"),
        ("https://mlflow.example", "https://mlflow.example"),
        ("databricks", "databricks"),
    ],
)
def test_so_is_mlflows_sqlite_store(typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert load_config("biggan-128", [f"tracking.uri={typed}"]).tracking.uri == meant.format(cwd=tmp_path, home="/home/me")


def test_run_is_expanded_and_else_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [load_config("biggan-128", [f"run={run}"]).run for run in ("~/x", "runs/x")] == ["/home/me/x", "runs/x"]


def test_a_folder_of_an_earlier_version_goes_on_from_where_it_was_started(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = load_manifest(str(shards))
    new = load_config("biggan-128", ["run=run", "data.uri=shards", "init=other"])
    old = replace(new, init="other", data=replace(new.data, uri="shards"))
    prepare(old, manifest)
    Path("run/config.yaml").write_text(to_yaml(old))  # as it was kept
    assert prepare(new, manifest) == []
    assert load_run_config("run").data.uri == str(tmp_path / "shards")


def test_from_elsewhere_an_old_folders_data_are_where_its_journal_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build({**yaml.safe_load(to_yaml(load_config("biggan-128"))), "run": str(tmp_path), "data": {"uri": "my/shards/"}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path).data.uri == "my/shards/"  # nothing knows better
    row = {"fingerprint": "0" * 32, "profile": "{}"}
    told: dict[str, Any] = {"uid": "0" * 32, "mode": "auto", "uri": None, "experiment": "x", "params": {}, "tags": {}}
    opened = {"open": told | {"datasets": [{"name": "shards", "uri": "/old/my/shards", **row}]}}
    (tmp_path / "journal.jsonl").write_text(json.dumps({"time": 0, **opened}) + "\n")
    assert load_run_config(tmp_path).data.uri == "/old/my/shards"
    parts = DataConfig(mix={"a": PartConfig("a/x"), "b": PartConfig("s3://b/x")})
    (tmp_path / "config.yaml").write_text(to_yaml(replace(config, data=parts)))
    opened["open"]["datasets"] = [{"name": "a", "uri": "/old/a/x", **row}, {"name": "b", "uri": "s3://b/x", **row}]
    (tmp_path / "journal.jsonl").write_text(json.dumps({"time": 0, **opened}) + "\n")
    assert [part.uri for part in load_run_config(tmp_path).data.mix.values()] == ["/old/a/x", "s3://b/x"]


def test_what_is_absolute_stays(tmp_path: Path) -> None:
    config = located(load_config("biggan-128", ["data.uri=x", "run=r"]))
    assert located(config) == config
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("x" * 5000)


@pytest.mark.parametrize("base", ["[cifar10]", "{a: b}", "7"])
def test_a_preset_is_one_name(base: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"preset: {base}\n")
    with pytest.raises(ConfigError, match="no config file or preset '7'" if base == "7" else "is not a name: name one preset"):
        load_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("typed", ["total_images=true", "optim.g_lr=True", "processes=false", "batch.micro_batch=true"])
def test_a_number_is_not_true_or_false(typed: str) -> None:
    with pytest.raises(ConfigError, match=typed.lower() + ": must not be true or false"):
        load_config("cifar10", [typed])
