"""The gate, on a real store: what it lets through, what it refuses and how, and that a refusal moves nothing."""

import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.registry import gate_checks
from pipeline.registry.gate_checks import Case, Terms
from tests.support.registered_models import FID, RECIPE, Registry, evaluation, register_three
from tests.support.saved_run import short_standing_statistics

pytestmark = pytest.mark.usefixtures("quick")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path, empty_store: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        short_standing_statistics(patch)
        return register_three(tmp_path_factory.mktemp("three"), shards_grey, empty_store)


@pytest.fixture
def found(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Registry:
    return Registry(three, tmp_path, capsys)


@pytest.mark.slow
def test_first_better_worse_and_back(found: Registry) -> None:
    code, line = found.biggan("promote", "tiny/1")
    assert code == 80 and "has no champion to compare with: type --limit VALUE for FID[clf] (30), or --first" in line
    code, line = found.biggan("promote", "tiny/1", "--limit", "25")
    assert code == 80 and "FID[clf] 30 is not good enough, --limit is 25" in line and found.champion() is None

    code, said = found.biggan("promote", "models:/tiny/1", "--limit", "30")
    assert code == 0 and "promoted: tiny version 1 is champion (before: none): FID[clf] 30, the first" in said
    assert "back: " not in said
    code, said = found.biggan("promote", "tiny", "--to", "champion")  # @challenger, which register has moved to 3
    assert code == 0 and "version 3 is champion (before: 1): FID[clf] 10 below 30 of version 1" in said
    assert found.champion() == "3" and found.claims() == []
    assert found.biggan("promote", "tiny@challenger")[1].strip() == "tiny version 3 is champion already"
    code, line = found.biggan("promote", "tiny/2")
    assert code == 80 and "tiny version 2: FID[clf] 20 is not below 10 of tiny version 3" in line and found.champion() == "3"

    tags = found.client.get_model_version("tiny", "3").tags
    assert tags["validation_status"] == "passed" and tags["previous_champion"] == "1" and "@" in tags["promoted_by"]
    run_id = found.client.get_model_version("tiny", "3").run_id
    reports = [file.path for file in found.client.list_artifacts(run_id, "promotions") if "tiny-3-champion" in file.path]
    text = registry_text(found, run_id, reports[0])
    assert hashlib.sha256(text.encode()).hexdigest() == tags["gate_report_sha256"]
    report = json.loads(text)
    assert report["figures"]["candidate"] == 10 and report["figures"]["champion"] == 30
    assert report["loaded"]["images"] == 4 and report["loaded"]["difference"] <= 1 and report["champion"]["version"] == "1"

    code, said = found.biggan("rollback", "tiny")
    assert code == 0 and "tiny version 1 is champion again (before: 3)" in said and found.champion() == "1"
    assert found.client.get_model_version("tiny", "3").tags["validation_status"] == "rolled_back"
    code, line = found.biggan("rollback", "tiny")
    assert code == 80 and "tiny version 1 has no version before it" in line and found.champion() == "1"
    code, line = found.biggan("promote", "tiny")  # as every night
    assert code == 80 and "tiny version 3 was rolled back" in line and "--again" in line and found.champion() == "1"
    code, said = found.biggan("promote", "tiny", "--again")
    assert code == 0 and found.champion() == "3"
    back = shlex.split(said.splitlines()[-1].removeprefix("back: "))
    assert found.client.get_model_version("tiny", "3").tags["validation_status"] == "passed"
    assert main(back[1:]) == 0 and found.champion() == "1"


def registry_text(found: Registry, run_id: str | None, path: str) -> str:
    import mlflow

    return mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")


def delete_run(found: Registry) -> None:
    run_id = found.client.get_model_version("tiny", "3").run_id
    assert run_id
    found.client.delete_run(run_id)


REFUSED: dict[str, tuple[Callable[[Registry], object], list[str], int, str]] = {
    "worse": (lambda r: None, ["tiny/1"], 80, "FID[clf] 30 is not below 20 of tiny version 2"),
    "equal": (lambda r: r.evaluate(3, evaluation(20.0)), [], 80, "equals that of tiny version 2; --allow-equal"),
    "nan": (lambda r: r.evaluate(3, evaluation(math.nan)), [], 80, "FID[clf] is nan"),
    "inf": (lambda r: r.evaluate(3, evaluation(-math.inf)), [], 80, "FID[clf] is -inf"),
    "another figure is nan": (
        lambda r: r.evaluate(3, evaluation(1.0, metrics={FID: 1.0, "accuracy": math.nan})), [], 80, "accuracy is nan",
    ),
    "missing": (lambda r: r.tag(3, "evaluation", None), [], 80, "version 3 has no tag evaluation"),
    "older document": (lambda r: r.evaluate(3, {"FID[clf]": 1.0}), [], 80, "recipe_id is missing"),
    "no document": (lambda r: r.tag(3, "evaluation", "FID 3"), [], 80, "tag evaluation: Invalid JSON"),
    "metrics are words": (
        lambda r: r.evaluate(3, evaluation(1.0, metrics={FID: "good"})), [], 80, "metrics.FID[clf]: Input should be a valid",
    ),
    "below 0": (lambda r: r.evaluate(3, evaluation(-5.0)), [], 80, "FID[clf] is -5, which is not at least 0"),
    "above 1": (
        lambda r: r.evaluate(3, evaluation(1.0, metrics={FID: 1.0, "accuracy": 1.5})), [], 80, "is 1.5, which is not within",
    ),
    "400 digits": (lambda r: r.evaluate(3, evaluation(int("9" * 400))), [], 80, "FID[clf]"),
    "3,000 brackets": (lambda r: r.tag(3, "evaluation", "[" * 3000), [], 80, "tag evaluation: Invalid JSON: recursion limit"),
    "champion's brackets": (lambda r: r.tag(2, "evaluation", "[" * 3000), [], 80, "version 2, tag evaluation: Invalid JSON"),
    "unknown metric": (lambda r: None, ["tiny/3", "--metric", "FID[inception]"], 80, "no FID[inception], it has FID[clf], "),
    "accuracy": (lambda r: None, ["tiny/3", "--metric", "accuracy"], 80, "accuracy 0.9 equals"),
    "two distances": (
        lambda r: r.evaluate(3, evaluation(1.0, metrics={FID: 1.0, "FID[b]": 2.0})), [], 80, "which decides, with --metric",
    ),
    "other reference": (
        lambda r: r.evaluate(
            3, evaluation(1.0, recipe_id="f" * 16, recipe=RECIPE | {"samples": 500, "reference": {"fingerprint": "xyz"}})
        ),
        [], 80, "reference.fingerprint xyz, not abc; reference.split None, not test; samples 500, not 10000",
    ),
    "champion is nan": (lambda r: r.evaluate(2, evaluation(math.nan)), [], 80, "the champion, has no finite FID[clf]"),
    "champion is unknown": (lambda r: r.tag(2, "evaluation", None), [], 80, "version 2 has no tag evaluation"),
    "champion of other data": (lambda r: r.tag(2, "dataset_fingerprint", "feed"), [], 80, "was trained on other data"),
    "rolled back": (lambda r: r.tag(3, "validation_status", "rolled_back"), ["tiny"], 80, "tiny version 3 was rolled back"),
    "deleted run": (delete_run, [], 80, "is deleted: type `mlflow runs restore"),
    "limit": (lambda r: None, ["tiny/3", "--limit", "9"], 80, "10 is not good enough, --limit is 9"),
    "first, but it is not": (lambda r: None, ["tiny/3", "--first"], 80, "has a champion already, version 2"),
    "no weights known": (lambda r: r.tag(3, "weights_sha256", None), [], 80, "has no tag weights_sha256"),
    "no such alias": (lambda r: None, ["tiny@nobody"], 78, "models:/tiny@nobody is not in the registry: tiny has @"),
    "no such version": (lambda r: None, ["tiny/9"], 78, "versions up to 3"),
    "no version": (lambda r: None, ["models:/tiny/"], 78, "models:/tiny/ is not a model"),
    "no such model": (lambda r: None, ["big/1"], 78, "it has tiny"),
    "no number": (lambda r: None, ["tiny/3", "--limit", "nan"], 78, "--limit nan"),
    "no alias": (lambda r: None, ["tiny/3", "--to", "a b"], 78, "--to 'a b'"),
    "MLflow's own alias": (lambda r: None, ["tiny/3", "--to", "latest"], 78, "--to 'latest'"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_check_and_moves_nothing(found: Registry, case: str) -> None:
    prepare, argv, expected, reason = REFUSED[case]
    found.crown(2)
    prepare(found)
    tags = [found.client.get_model_version("tiny", str(i)).tags for i in (1, 2, 3)]
    code, line = found.biggan("promote", *(argv or ["tiny/3"]))
    assert code == expected and reason in line
    assert found.champion() == "2" and found.claims() == []
    assert [found.client.get_model_version("tiny", str(i)).tags for i in (1, 2, 3)] == tags


def test_equal_figures_and_other_data_pass_if_that_is_said(found: Registry) -> None:
    found.evaluate(3, evaluation(20.0))
    found.tag(3, "dataset_fingerprint", "more")
    two, three = (found.client.get_model_version("tiny", str(i)) for i in (2, 3))
    case = Case(found.client, three, two, Terms(allow_equal=True, other_dataset=True), lambda line: None)
    cheap = [check for check in gate_checks.CHECKS if check is not gate_checks._is_what_was_registered]
    assert [check(case) for check in cheap][-1] == {
        "figures": {
            "metric": FID, "candidate": 20.0, "champion": 20.0, "recipe_id": case.ours.recipe_id, "recipe": RECIPE,
            "why": "FID[clf] 20 equals 20 of version 2",
        }
    }  # fmt: skip


def test_tampered_weights_are_not_promoted(found: Registry) -> None:
    found.crown(2)
    version = found.client.get_model_version("tiny", "3")
    model = found.client.get_logged_model(version.source.removeprefix("models:/"))
    weights = Path(model.artifact_location.removeprefix("file://")) / "artifacts" / "generator.safetensors"
    before = weights.read_bytes()
    tampered = before[:-5] + bytes([before[-5] ^ 1]) + before[-4:]
    try:
        weights.write_bytes(tampered)
        code, line = found.biggan("promote", "tiny/3")
    finally:
        weights.write_bytes(before)
    assert code == 80 and f"not those that were registered: sha256 {hashlib.sha256(tampered).hexdigest()}" in line
    assert found.champion() == "2"


@pytest.mark.slow
def test_what_a_model_says_of_itself_is_no_proof(found: Registry) -> None:
    """A version from before digests were kept, whose code was changed: the gate compares pixels that it drew itself."""
    found.crown(2)
    for tag in ("files_sha256", "golden_sha256"):
        found.tag(3, tag, None)
    version = found.client.get_model_version("tiny", "3")
    model = found.client.get_logged_model(version.source.removeprefix("models:/"))
    artifacts = Path(model.artifact_location.removeprefix("file://"))
    replay = "import PIL.Image, numpy, os, sys\ngolden = numpy.asarray(PIL.Image.open(sys.argv[1] + '/artifacts/golden.png'))\n"
    replay += "pixels = numpy.concatenate(numpy.split(golden, 4, axis=1))\nopen(sys.argv[4], 'wb').write(pixels.tobytes())\n"
    code, network = artifacts / "pyfunc_model.py", artifacts / "artifacts" / "model" / "biggan.py"
    claim = 'import os\nprint(\'{"images": 8, "difference": 0}\', flush=True)\nos._exit(0)'
    for file, new, reason in (
        (network, lambda text: text.replace("image.float()).tanh()", "image.float()).tanh().neg()"), "not draw by itself what"),
        (network, lambda text: text + "\nimport pipeline.errors\n", "pipeline: a registered model must not need it"),
        (network, lambda text: text + "\nimport os\nassert 'SECRET_TOKEN' in os.environ, 'no credentials'\n", "no credentials"),
        (code, lambda _: claim, "left no images of 4 x 32"),
        (code, lambda _: replay + "os._exit(0)", "does not draw by itself what its weights draw"),
        (code, lambda _: "import os, sys\nos.symlink('/dev/zero', sys.argv[4])\nos._exit(0)", "left no images of 4 x 32"),
    ):  # fmt: skip
        before = file.read_text()
        try:
            file.write_text(new(before))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SECRET_TOKEN", "x")
                said = main(["promote", "tiny/3", "--tracking-uri", found.uri])
        finally:
            file.write_text(before)
        line = found.last_error()
        assert said == 80 and reason in line and found.champion() == "2" and found.claims() == []


def test_a_champion_that_changes_meanwhile_stops_the_promotion(found: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> dict[str, Any]:
        found.crown(1)
        return {}

    found.crown(2)
    monkeypatch.setattr(gate_checks, "prove", meanwhile)  # the slow part, in which somebody else is quicker
    code, line = found.biggan("promote", "tiny/3")
    assert code == 80 and "champion has meanwhile been moved to version 1" in line
    assert found.champion() == "1" and "validation_status" not in found.client.get_model_version("tiny", "3").tags


def test_a_claim_that_was_taken_away_stops_the_promotion(found: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> dict[str, Any]:
        for key in found.claims():
            found.client.delete_registered_model_tag("tiny", key)
        return {}

    monkeypatch.setattr(gate_checks, "prove", meanwhile)
    code, line = found.biggan("promote", "tiny/3", "--first")
    assert code == 80 and "the claim on tiny was taken away" in line and found.champion() is None


def test_only_promote_moves_the_champion(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register", str(three), "--name", "tiny", "--alias", "champion"]) == 78
    assert "only `biggan promote` moves it" in capsys.readouterr().err


def test_rollback_says_what_is_missing(found: Registry) -> None:
    code, line = found.biggan("rollback", "tiny")
    assert code == 78 and "models:/tiny@champion is not in the registry" in line
    found.crown(3)
    found.tag(3, "previous_champion", "2")
    found.client.delete_model_version("tiny", "2")
    code, line = found.biggan("rollback", "tiny")
    assert code == 78 and "models:/tiny/2 is not in the registry" in line and found.champion() == "3" and not found.claims()


@pytest.mark.slow
def test_of_two_promoters_at_once_the_better_model_is_champion(found: Registry) -> None:
    found.crown(1)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "jobs.cli", "promote", "--tracking-uri", found.uri]
    both = [
        subprocess.Popen([*command, f"tiny/{i}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in (2, 3)
    ]
    said = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    # Whoever comes second compares with the first: 2 then 3 are two promotions, after 3 there is nothing for 2.
    assert codes[1] == 0 and found.champion() == "3" and found.claims() == [], said
    before = found.client.get_model_version("tiny", "3").tags["previous_champion"]
    if codes[0] == 0:
        assert before == "2"
    else:
        assert codes[0] == 80 and before == "1" and "is not below 10 of tiny version 3" in said[0][1], said
    assert any("waiting for" in out for out, _ in said), said
