"""How a registered model is named: in every command alike, as MLflow itself reads it, and in what is printed to be typed."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.cli import main
from jobs.dockerfile import image_name
from pipeline.errors import ConfigError
from pipeline.generation.load import load_generator
from pipeline.registry import versions
from pipeline.tracking.mlflow_store import store_uri
from pipeline.wording import command
from tests.support.tiny_runs import assert_one_line

pytestmark = pytest.mark.usefixtures("quick")

LOGGED = f"models:/m-{'0123456789abcdef' * 2}"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("models:/tiny", "names no version: tiny has @first and versions up to 1; name one, as models:/tiny@ALIAS"),
        ("models:/tiny@nobody", "not in the registry: tiny has @first"),
        ("models:/tiny/9", "not in the registry: tiny has @first and versions up to 1"),
        ("models:/other", "not in the registry: it has tiny"),
        ("models:/other/latest", "not in the registry: it has tiny"),
        ("models:/tiny/Production", "is not a model: name a registered version"),
        (LOGGED, "names files of a run: name a registered version, as models:/NAME@ALIAS"),
        ("runs:/0123abcd/model", "names files of a run"),
    ],
)
def test_what_names_no_version_is_answered_alike_by_every_command(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    commands = [
        ["export", model, str(tmp_path / "exported")],
        ["explore", model, "--port", "0"],
        ["dockerfile", model, str(tmp_path / "docker")],
        ["copy", model, "--to", str(registered_run)],
        ["sample", model, str(tmp_path / "x.png")],
    ]
    if model not in ("models:/tiny", "models:/other", LOGGED):  # there a name alone is the challenger
        commands.append(["promote", model])
    for argv in commands:
        capsys.readouterr()
        assert main([*argv, "--tracking-uri", str(registered_run)]) == 78
        assert_one_line(capsys.readouterr().err, 78, 78, model, said)
    assert not list(tmp_path.iterdir())


def test_latest_a_version_and_an_alias_are_the_same_weights_in_every_command(registered_run: Path, tmp_path: Path) -> None:
    tracked = ["--tracking-uri", str(registered_run)]
    client = versions.use(store_uri(registered_run, None))
    wanted = versions.resolve(client, "models:/tiny@first").tags["weights_sha256"]
    for uri in ("models:/tiny/1", "models:/tiny/latest", "models:/tiny/Latest"):
        assert versions.resolve(client, uri).tags["weights_sha256"] == wanted
    assert main(["export", "models:/tiny/latest", str(tmp_path / "files"), "--format", "safetensors", *tracked]) == 0
    assert load_generator(tmp_path / "files").weights_sha256 == wanted


def test_a_command_that_takes_no_model_of_a_registry_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("models:/tiny@first", "runs:/0123/model"):
        with pytest.raises(ConfigError, match=f"{model} is in a registry.*`biggan export models:/NAME@ALIAS DIR"):
            load_generator(model)
    assert main(["rollback", "tiny@champion", "--tracking-uri", "http://127.0.0.1:9"]) == 78
    assert "pass the name alone" in capsys.readouterr().err


def test_a_registry_that_is_not_where_runs_are_tracked_is_refused(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:secret@127.0.0.1:9")
    out, run = str(tmp_path / "x.png"), str(registered_run)
    for argv in (
        ["sample", "models:/tiny@first", out, "--tracking-uri", run],
        ["register", run],
        ["rollback", "tiny", "--tracking-uri", run],
    ):
        assert main(argv) == 78
        assert_one_line(capsys.readouterr().err, 78, 78, "MLFLOW_REGISTRY_URI=http://127.0.0.1:9", "unset")  # fmt: skip
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store_uri(registered_run, None))
    assert main(["sample", "models:/tiny@first", out, "--tracking-uri", run, "--per-class", "1"]) == 0


def test_a_store_that_is_not_there_is_not_made_by_looking_for_a_model(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "typo.db"
    for argv in (["sample", "models:/tiny@first", str(tmp_path / "x.png")], ["promote", "tiny"], ["rollback", "tiny"]):
        assert main([*argv, "--tracking-uri", f"sqlite:///{store}"]) == 78
        assert_one_line(capsys.readouterr().err, 78, 78, f"there is no MLflow store {store}")
    assert not store.exists()


@settings(max_examples=50)
@given(st.text(max_size=12))
@example("my model")
@example("Vögel")
@example("a?b")
@example("a%2Fb")
@example("a#b&c+d")
@example("a\tb")
@example("..")
def test_a_name_that_is_taken_is_read_back_by_mlflow_the_shell_and_docker(name: str) -> None:
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils.search_utils import SearchModelVersionUtils

    try:
        versions.check_names(name, "challenger")
    except ConfigError as error:
        assert f"{name!r}" in str(error)
        assert set(name) & set("/:@'?") or not name.strip(". ") or not name.isprintable() or name != name.strip()
        return
    uri = f"models:/{name}@challenger"
    assert _parse_model_uri(uri).name == name and _parse_model_uri(f"models:/{name}/3").name == name
    found = versions._MODEL_URI.fullmatch(uri)
    assert found and found["name"] == name
    (condition,) = SearchModelVersionUtils.parse_search_filter(f"name = '{name}'")
    assert condition["value"] == name
    assert shlex.split(command("sample", uri).strip("`")) == ["biggan", "sample", uri]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", image_name(name))


@pytest.mark.parametrize("argv", [("export", "RUN", "file/model"), ("sample", "RUN", "file/set.npz", "--count", "2")])
def test_a_file_in_the_way_of_a_folder_is_named(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"mine")
    assert main([str(registered_run) if word == "RUN" else word for word in argv]) == 78
    assert "cannot be written: file is a file; name a path below a folder" in capsys.readouterr().err
    assert Path("file").read_bytes() == b"mine"
