"""A cluster's job from a run's configuration and a file: what is taken, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster.job import describe
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError

REMOTE = ("data.uri=s3://bucket/shards", "checkpoint.uri=s3://bucket/one", "tracking.uri=https://mlflow.example")
EXAMPLE = Path(__file__).parents[3] / "container" / "cluster.example.yaml"


def config(*overrides: str) -> RunConfig:
    return load_config("biggan-128", ["run=runs/One_Two", *REMOTE, *overrides])


def test_the_example_is_a_job(tmp_path: Path) -> None:
    job = describe(config("stop.grace=60"), EXAMPLE, 4, None)
    assert (job.name, job.nodes, job.gpus, job.gpu, job.grace) == ("one-two", 4, 8, "H100", 60)
    assert job.secrets == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN")
    assert describe(config(), EXAMPLE, 4, 2).gpus == 2
    again = tmp_path / "again.yaml"
    again.write_text(job.config)
    assert load_config(str(again)).run == "/scratch/one-two"
    assert load_config(str(again), ["run=runs/One_Two"]) == config("stop.grace=60")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("checkpoint.uri=null", "checkpoint.uri=: the machines have disks of their own"),
        ("checkpoint.uri=/shared/one", "checkpoint.uri=/shared/one: the machines"),
        ("data.uri=shards", "data.uri=/.*/shards: the machines"),
        ("init=runs/other", "init=/.*/runs/other: the machines"),
        ("tracking.uri=null", "tracking.uri=: MLflow's store would go"),
        ("tracking.uri=sqlite:///x.db", "tracking.mode=off"),
        ("tracking.mode=offline", "tracking.mode=offline: what waits"),
    ],
)
def test_what_would_be_lost_with_a_disk_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        describe(config(override), EXAMPLE, 1, None)


def test_a_run_without_mlflow_may_go() -> None:
    assert describe(config("tracking.uri=null", "tracking.mode=off"), EXAMPLE, 1, None).nodes == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imag": "x:1"}, "imag: "),
        ({"image": None}, "image: "),
        ({"gpus": "many"}, "gpus: "),
        ({"name": "Nope"}, "name=Nope"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "name it in secrets"),
        ({"nodes": 3}, "nodes is no key of it"),
        ({"grace": 3}, "grace is no key of it"),
    ],
)
def test_a_mistake_in_the_file_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(EXAMPLE.read_text()) | change))
    with pytest.raises(ConfigError, match=said) as error:
        describe(config(), file, 1, None)
    assert str(error.value).startswith(f"--cluster {file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"), [("- a", "must hold"), ("a: [", "cluster.yaml is not YAML: while parsing"), (None, "No such file")]
)
def test_what_is_no_such_file(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        describe(config(), file, 1, None)
