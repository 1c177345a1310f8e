"""What is submitted is read once: each scheduler's job parses the configuration that was checked, to the last letter."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipeline import config_tree
from pipeline.cluster import submission
from pipeline.cluster.job import ClusterJob, describe
from pipeline.cluster.job_specs import as_yaml, aws_batch, config_map, jobset, skypilot
from pipeline.config import RunConfig, load_config, to_yaml
from pipeline.errors import ConfigError

SCRIPT = Path(__file__).parents[3] / "slurm" / "train.sbatch"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
IMAGE = "registry.example/biggan:1.0"


def job(config: RunConfig, **more: object) -> ClusterJob:
    return replace(
        ClusterJob(name="gan", image=IMAGE, config=to_yaml(config), gpu="H100", cpus=1, memory_gb=1, instance_type="p5"), **more
    )  # type: ignore[arg-type]


def stub(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program `name` in `folder`, and the environment in which it is found first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


@pytest.mark.long
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
@example("lr 1e-3 #2")
@example("END OF CONFIG\nEND OF CONFIG")
@example("$(touch x) `y` \\ '\"")
@example("1e3")
@example("a: b\n- [c]\x85\u2028 ")
def test_each_job_reads_the_configuration_that_was_checked(tmp_path: Path, text: str) -> None:
    words = [f"run=/scratch/{text}", f"data.uri=s3://bucket/{text}", f"tracking.experiment={text}", f"data.transform={text}"]
    config = load_config("cifar10", words)
    (map_,) = [one for one in yaml.safe_load_all(as_yaml(config_map(job(config)), jobset(job(config)))) if "data" in one]
    file = tmp_path / "config.yaml"
    file.write_text(map_["data"]["config.yaml"])
    assert load_config(str(file)) == config
    seen = tmp_path / "seen.yaml"
    environment = stub(tmp_path / "bin", "biggan", f'[ "$1" = node ] && [ $# = 2 ] && cp "$2" {seen}')
    run = yaml.safe_load(as_yaml(skypilot(job(config))))["run"]
    assert subprocess.run(["bash", "-c", run], env=environment, check=False).returncode == 0
    assert load_config(str(seen)) == config
    (row,) = aws_batch(job(config))["nodeProperties"]["nodeRangeProperties"]
    variables = {one["name"]: one["value"] for one in row["container"]["environment"]}
    command = [part.replace("/tmp/config.yaml", str(file)) for part in row["container"]["command"]]
    seen.unlink()
    assert subprocess.run(command, env=environment | variables, check=False).returncode == 0
    assert load_config(str(seen)) == config
    submission.freeze(tmp_path / "submission", config, {})
    assert load_config(str(tmp_path / "submission" / "config.yaml")) == config


@pytest.mark.long
@pytest.mark.parametrize("name", ["lr 1e-3 #2", " '$(touch x)'"])
def test_the_script_of_slurm_trains_in_the_folder_that_was_checked(name: str, tmp_path: Path) -> None:
    run = tmp_path / name
    config = load_config("cifar10", [f"run={run}", "data.uri=s3://bucket/x"])
    submission.freeze(run / "submission", config, {})
    said = tmp_path / "said"
    steps = f'for argument; do printf "%s\\\\0" "$argument"; done >>{said}; echo end 0 done'
    environment = stub(tmp_path / "bin", "srun", steps) | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    stub(tmp_path / "bin", "squeue", "echo UNLIMITED")
    command = ["bash", str(SCRIPT), str(run / "submission" / "config.yaml")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    words = said.read_text().split("\0")
    assert words[words.index("node") + 1 :][:1] == [str(run / "submission" / "config.yaml")]
    assert not [word for word in words if word.startswith("run=")]
    assert words[words.index("pipeline.cluster.restarts") + 1] == str(run) == load_config(words[words.index("node") + 1]).run


def test_a_line_break_in_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", stub(tmp_path / "bin", "sbatch", "exit 1")["PATH"])
    assert main(["submit", "slurm", "cifar10", f"run={tmp_path}/a\nb", "data.uri=s3://b/x"]) == 78
    assert "has a line break" in capsys.readouterr().err and not list(tmp_path.glob("a*"))


@pytest.mark.parametrize("word", ["08", "1e3", "no", "yes", "0x1f", "1:30", "2024-10-01", "1_000", "~x", "010"])
def test_the_values_of_the_clusters_file_are_taken_as_they_are_written(word: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    lines = [
        f"image: {IMAGE}",
        f"env: {{ZONE: {word}}}",
        f"node_selector: {{zone: {word}}}",
        "secrets: [yes]",
        f"queue: {word}",
    ]
    file.write_text("\n".join(lines))
    remote = ["data.uri=s3://bucket/x", "checkpoint.uri=s3://bucket/y", "tracking.mode=off"]
    found = describe(load_config("cifar10", ["run=one", *remote]), file, 1, None)
    assert (found.env, found.node_selector, found.secrets, found.queue) == ({"ZONE": word}, {"zone": word}, ("yes",), word)
    manifest = as_yaml(jobset(found))
    for loader in (yaml.SafeLoader, config_tree._Loader):  # YAML 1.1 and 1.2
        tree = yaml.load(manifest, loader)
        pod = tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert {"name": "ZONE", "value": word} in pod["containers"][0]["env"]
        assert pod["nodeSelector"] == {"zone": word}


@pytest.mark.parametrize("name", ["AZURE_STORAGE_SAS", "WANDB_API_KEY", "HF_APIKEY", "PGPASS", "MY_PASSWD"])
def test_a_manifest_takes_names_of_secrets_alone(name: str) -> None:
    with pytest.raises(ValueError, match=f"env.{name}: manifests are no place"):
        ClusterJob(name="gan", image=IMAGE, config="run: x", env={name: "x"})
    assert ClusterJob(name="gan", image=IMAGE, config="run: x", secrets=(name,)).secrets == (name,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.uri=https://me:word@host/x"], "set data.uri=https://host/x, with the secret in BIGGAN_HTTP_LOGINS or ~/.netrc"),
        (["data.mix.a.uri=https://host/x?sig=word"], "set data.mix.a.uri=https://host/x, with the secret in BIGGAN_HTTP"),
        (["tracking.uri=https://me:word@host"], "set tracking.uri=https://host, with the secret in MLFLOW_TRACKING_USERNAME"),
        (["tracking.uri=postgresql://host/d?user=u&password=word"], "postgresql://host/d"),
        (["checkpoint.uri=s3://b/x?token=word"], "set checkpoint.uri=s3://b/x, with"),
    ],
)
def test_a_submission_refuses_values(words: list[str], said: str) -> None:
    base = [] if words[0].startswith("data.mix") else ["data.uri=s3://bucket/x"]
    config = load_config("cifar10", ["run=one", *base, *words])
    with pytest.raises(ConfigError) as error:
        submission.refuse_secrets(config)
    assert said in str(error.value) and "word" not in str(error.value).replace("password or key", "")
    with pytest.raises(ValueError, match="config: manifests are no place"):
        job(config)
    submission.refuse_secrets(load_config("cifar10", ["run=one", "tracking.uri=postgresql://me@host/d", "data.uri=x"]))
