import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.sample import choose
from pipeline.errors import ConfigError
from pipeline.tracking import store_uri
from tests.jobs.test_register import refusal

pytestmark = pytest.mark.usefixtures("quick")

REPOSITORY = Path(__file__).parents[2]


def drawn(out: Path, *argv: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    assert main(["sample", *argv[:1], str(out), *argv[1:]]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.mode == "L"
        return np.asarray(image).astype(np.int64)


def test_a_run_and_its_registered_model_draw_the_same_grid(registered_run: Path, tmp_path: Path) -> None:
    # Untruncated: a registered model has one set of batch-norm statistics, a run computes those of each truncation.
    options = ["--seed", "5", "--per-class", "3"]
    ours = drawn(tmp_path / "ours.png", str(registered_run), *options)
    assert ours.shape == (3 * 32, 4 * 32)
    for model, store in (
        ("models:/tiny@first", str(registered_run)),
        ("models:/tiny/1", store_uri(registered_run, None)),
    ):
        theirs = drawn(tmp_path / "theirs.png", model, *options, "--tracking-uri", store)
        assert abs(ours - theirs).max() <= 1  # rounding, should the two sum in another order


def test_the_same_seed_gives_the_same_bytes(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    first, again, other = tmp_path / "new" / "first.png", tmp_path / "again.png", tmp_path / "other.png"
    pixels = [drawn(out, run, "--seed", seed) for out, seed in ((first, "1"), (again, "1"), (other, "2"))]
    assert first.read_bytes() == again.read_bytes()
    assert abs(pixels[0] - pixels[2]).max() > 10


def test_column_i_is_class_i_and_classes_are_chosen_by_name_or_number(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    everything = drawn(tmp_path / "all.png", run, "--per-class", "1")
    one = drawn(tmp_path / "one.png", run, "--per-class", "1", "--classes", "bars")
    assert abs(one - everything[:, :32]).max() <= 1
    swapped = drawn(tmp_path / "swapped.png", run, "--per-class", "1", "--classes", "3,blob,2,0")
    assert abs(swapped[:, 32:96] - everything[:, 32:96]).max() <= 1  # same class, same place, same latent
    assert abs(swapped[:, :32] - everything[:, :32]).max() > 10


def test_choose_takes_the_first_ten_of_many() -> None:
    assert choose(None, [str(i) for i in range(1000)]) == list(range(10))
    assert choose("n02,0", ["n01", "n02"]) == [1, 0]
    with pytest.raises(ConfigError, match="--classes 'n03': the model has 0 to 1: n01, n02"):
        choose("n03", ["n01", "n02"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["models:/tiny@nobody", "o.png"], "tiny has @first and versions up to 1"),
        (["models:/tiny/7", "o.png"], "tiny has @first"),
        (["models:/other@first", "o.png"], "it has tiny"),
        (["models:/tiny", "o.png"], "type models:/NAME@ALIAS"),
        (["nowhere", "o.png"], "no model nowhere"),
        (["RUN", "o.jpg"], "must end in .png"),
        (["RUN", "o.png", "--truncation", "0"], "--truncation 0.0"),
        (["RUN", "o.png", "--per-class", "0"], "--per-class 0"),
        (["RUN", "o.png", "--seed", "-1"], "--seed -1"),
        (["RUN", "o.png", "--classes", "cat"], "--classes 'cat'"),
        (["models:/tiny@first", "o.png", "--classes", "cat"], "--classes 'cat'"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    registered_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(registered_run, None))
    code, line = refusal(capsys, "sample", *(str(registered_run) if part == "RUN" else part for part in argv))
    assert code == 78 and says in line
    assert list(tmp_path.iterdir()) == []


def test_a_registry_model_needs_to_know_which_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refusal(capsys, "sample", "models:/tiny@first", str(tmp_path / "o.png"))
    assert code == 78 and "--tracking-uri" in line and "MLFLOW_TRACKING_URI" in line
    code, line = refusal(capsys, "sample", "models:/tiny@first", "o.png", "--tracking-uri", str(tmp_path))
    assert code == 78 and "not the folder of a training" in line


@pytest.mark.slow
def test_the_command_says_nothing_but_its_own_line(registered_run: Path, tmp_path: Path) -> None:
    """MLflow, alembic and torch are kept quiet in a process of their own, where nobody has imported them before."""
    command = ["sample", "models:/tiny@first", str(tmp_path / "o.png"), "--tracking-uri", str(registered_run)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    result = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout == f"{tmp_path / 'o.png'}: 8 x 4 images, columns bars, blob, checks, stripes\n"
