import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.cli import main
from model.latents import RandomStream, random_labels
from model.sampling import generate, grid
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError
from pipeline.generation import sample_files
from pipeline.generation.load import load_generator
from pipeline.generation.sample_request import choose
from pipeline.tracking.mlflow_store import store_uri
from tests.support.mistakes import refusal

pytestmark = pytest.mark.usefixtures("quick")

REPOSITORY = Path(__file__).parents[2]


def drawn(out: Path, *argv: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    assert main(["sample", *argv[:1], str(out), *argv[1:]]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.mode == "L"
        return np.asarray(image).astype(np.int64)


@pytest.mark.long
def test_a_run_and_its_registered_model_draw_the_same_grid(registered_run: Path, tmp_path: Path) -> None:
    options = ["--seed", "5", "--per-class", "3"]
    ours = drawn(tmp_path / "ours.png", str(registered_run), *options)
    assert ours.shape == (3 * 32, 4 * 32)
    for model, store in (
        ("models:/tiny@first", str(registered_run)),
        ("models:/tiny/1", store_uri(registered_run, None)),
    ):
        theirs = drawn(tmp_path / "theirs.png", model, *options, "--tracking-uri", store)
        assert abs(ours - theirs).max() <= 1  # rounding, should the two sum in another order
    truncated = [drawn(tmp_path / "truncated.png", model, *options, "--truncation", "0.8", "--tracking-uri", store)]
    truncated.append(drawn(tmp_path / "truncated.png", str(registered_run), *options, "--truncation", "0.8"))
    assert all(abs(ours - other).max() > 10 for other in truncated)


def test_the_same_seed_gives_the_same_bytes(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    first, again, other = tmp_path / "new" / "first.png", tmp_path / "again.png", tmp_path / "other.png"
    pixels = [drawn(out, run, "--seed", seed) for out, seed in ((first, "1"), (again, "1"), (other, "2"))]
    assert first.read_bytes() == again.read_bytes()
    assert abs(pixels[0] - pixels[2]).max() > 10


def test_a_notebook_samples_without_a_command_line(registered_run: Path, tmp_path: Path) -> None:
    from pipeline.generation import sample
    from pipeline.registry.registered_images import opener

    by_command = drawn(tmp_path / "command.png", str(registered_run), "--per-class", "1", "--seed", "3")
    written = sample(registered_run, tmp_path / "sheet.png", per_class=1, seed=3)
    assert (written.images, written.what) == (4, "1 x 4 images, columns bars, blob, checks, stripes")
    with Image.open(written.out) as image:
        assert (np.asarray(image) == by_command).all()
    with pytest.raises(ConfigError, match=r"--count is missing: say how many images .*set\.npz shall hold"):
        sample(registered_run, tmp_path / "set.npz")
    model, out = "models:/tiny@first", tmp_path / "theirs.npz"
    with pytest.raises(ConfigError, match=r"models:/tiny@first is registered: pass open_registered=pipeline\.registry\."):
        sample(model, out, count=2)
    written = sample(model, out, count=2, open_registered=opener(str(registered_run)))
    assert written.what == "2 images of 4 classes" and np.load(out)["arr_0"].shape == (2, 32, 32, 1)


def test_column_i_is_class_i_and_classes_are_chosen_by_name_or_number(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    everything = drawn(tmp_path / "all.png", run, "--per-class", "1")
    one = drawn(tmp_path / "one.png", run, "--per-class", "1", "--classes", "bars")
    assert abs(one - everything[:, :32]).max() <= 1
    swapped = drawn(tmp_path / "swapped.png", run, "--per-class", "1", "--classes", "3,blob,2,0")
    assert abs(swapped[:, 32:96] - everything[:, 32:96]).max() <= 1  # same class, same place, same latent
    assert abs(swapped[:, :32] - everything[:, :32]).max() > 10


def test_random_classes_fill_a_grid(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    sheet = drawn(tmp_path / "grid.png", run, "--layout", "grid", "--per-class", "2", "--seed", "3")
    assert sheet.shape == (2 * 32, 10 * 32)
    labels = random_labels(3, RandomStream.SAMPLES, 0, 20, 4)
    images = generate(load_generator(run).generator, labels, seed=3)
    assert len(labels.unique()) == 4 and abs(sheet - grid(images, 10).squeeze(2).numpy().astype(int)).max() <= 1


def test_rows_of_an_interpolation_begin_and_end_at_samples(registered_run: Path, tmp_path: Path) -> None:
    run = str(registered_run)
    options = ["--per-class", "2", "--classes", "bars,stripes,blob", "--seed", "4", "--truncation", "0.9"]
    sheet = drawn(tmp_path / "walk.png", run, "--layout", "interpolation", "--steps", "5", "--batch", "3", *options)
    assert sheet.shape == (2 * 32, 5 * 32)
    trained = load_generator(run, truncation=0.9)
    ends = generate(trained.generator, torch.tensor([0, 3, 1, 0]), seed=4, truncation=0.9)[:, 0].numpy().astype(int)
    corners = [sheet[:32, :32], sheet[:32, -32:], sheet[32:, :32], sheet[32:, -32:]]
    assert all(abs(corner - end).max() <= 1 for corner, end in zip(corners, ends, strict=True))
    assert abs(sheet[:32, 64:96] - ends[0]).max() > 3 and abs(sheet[:32, 64:96] - ends[1]).max() > 3


@pytest.mark.long
def test_each_row_of_truncations_has_its_own_statistics(registered_run: Path, tmp_path: Path) -> None:
    run, method = str(registered_run), ["--truncation-method", "scaled-normal", "--classes", "0,2"]
    sheet = drawn(tmp_path / "rows.png", run, "--layout", "truncation", "--truncations", "0.2,none,0.6", *method)
    assert sheet.shape == (3 * 32, 2 * 32)
    for row, truncation in enumerate((["--truncation", "0.2"], [], ["--truncation", "0.6"])):
        alone = drawn(tmp_path / "row.png", run, "--per-class", "1", *truncation, *method)
        assert abs(sheet[row * 32 : row * 32 + 32] - alone).max() <= 1


def test_a_webp_sheet_has_the_pixels_of_the_png(registered_run: Path, tmp_path: Path) -> None:
    png = drawn(tmp_path / "o.png", str(registered_run), "--per-class", "1")
    assert main(["sample", str(registered_run), str(tmp_path / "o.webp"), "--per-class", "1"]) == 0
    with Image.open(tmp_path / "o.webp") as image:
        assert image.format == "WEBP"
        assert (np.asarray(image) == png[:, :, None]).all()


def wanted_set(run: Path, count: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    """Images [n, H, W, C] and labels of a set, classes in turn."""
    labels = torch.arange(count) % 4
    images = generate(load_generator(run).generator, labels, seed=seed)
    return images.permute(0, 2, 3, 1).numpy(), labels.tolist()


def test_an_npz_for_evaluators(registered_run: Path, tmp_path: Path) -> None:
    out, (images, labels) = tmp_path / "new" / "set.npz", wanted_set(registered_run, 10, seed=2)
    assert main(["sample", str(registered_run), str(out), "--count", "10", "--batch", "4", "--seed", "2"]) == 0
    with np.load(out) as file:
        assert file.files == ["arr_0", "arr_1"] and file["arr_0"].dtype == np.uint8 and file["arr_1"].dtype == np.int64
        assert abs(file["arr_0"].astype(int) - images).max() <= 1 and file["arr_1"].tolist() == labels
    assert [path.name for path in out.parent.iterdir()] == ["set.npz"]
    other = tmp_path / "registered.npz"
    store = ["--tracking-uri", str(registered_run), "--seed", "2"]
    assert main(["sample", "models:/tiny@first", str(other), "--count", "10", "--batch", "4", *store]) == 0
    with np.load(other) as file:
        assert abs(file["arr_0"].astype(int) - images).max() <= 1 and file["arr_1"].tolist() == labels


def test_a_failure_leaves_no_npz(tmp_path: Path) -> None:
    def batches() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        yield np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_files.write_npz(tmp_path / "o.npz", batches(), 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_folder_of_pictures(registered_run: Path, tmp_path: Path, form: str) -> None:
    images, labels = wanted_set(registered_run, 6)
    out = tmp_path / "images"
    out.mkdir()  # an existing folder needs no slash
    slash = "" if form == "png" else "/"
    assert main(["sample", str(registered_run), f"{out}{slash}", "--count", "6", "--batch", "4", "--format", form]) == 0
    files = sorted(out.rglob("*.*"), key=lambda path: path.name)
    names = ["bars", "blob", "checks", "stripes"]
    assert [str(path.relative_to(out)) for path in files] == [f"{names[y]}/{i:06d}.{form}" for i, y in enumerate(labels)]
    for path, wanted in zip(files, images, strict=True):
        with Image.open(path) as image:
            assert image.format == form.upper() and abs(np.asarray(image.convert("L")).astype(int) - wanted[..., 0]).max() <= 1


def test_shards_can_be_read_as_data(registered_run: Path, tmp_path: Path) -> None:
    images, labels = wanted_set(registered_run, 9)
    uri = str(tmp_path / "shards")
    assert main(["sample", str(registered_run), uri, "--count", "9", "--batch", "4", "--format", "shards"]) == 0
    manifest = load_manifest(uri)
    assert manifest.classes == ("bars", "blob", "checks", "stripes") and manifest.class_counts == (3, 2, 2, 2)
    assert (manifest.resolution, manifest.channels) == (32, 1)
    stored, known = load_all(DataConfig(uri=uri), manifest)
    assert known.tolist() == labels and abs(stored.permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1


def test_a_set_of_random_classes_and_of_chosen_ones(registered_run: Path, tmp_path: Path) -> None:
    for name, options in (("grid", ["--layout", "grid"]), ("two", ["--classes", "stripes,0"])):
        assert main(["sample", str(registered_run), str(tmp_path / f"{name}.npz"), "--count", "40", *options]) == 0
    with np.load(tmp_path / "grid.npz") as file:
        assert file["arr_1"].tolist() == random_labels(0, RandomStream.SAMPLES, 0, 40, 4).tolist()
    with np.load(tmp_path / "two.npz") as file:
        assert file["arr_1"].tolist() == [3, 0] * 20


def test_a_webp_that_would_be_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"16416 pixels are too many for WebP; let it end in \.png"):
        sample_files.write_sheet(str(tmp_path / "o.webp"), torch.zeros(513, 1, 32, 32, dtype=torch.uint8), 1)


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
        (["models:/tiny", "o.png"], "name one, as models:/tiny@ALIAS"),
        (["nowhere", "o.png"], "no model nowhere"),
        (["RUN", "o.jpg"], "must end in .png"),
        (["RUN", "s3://bucket/o.npz"], "written on this machine's disk"),
        (["RUN", "o.png", "--checkpoint", "5"], "no checkpoint at 5 images; it has: 4096"),
        (["RUN", "o.png", "--truncation-method", "clip"], "invalid choice: 'clip'"),
        (["RUN", "o.png", "--truncation", "0"], "--truncation 0.0"),
        (["RUN", "o.png", "--truncation", "inf"], "--truncation inf"),
        (["RUN", "o.png", "--layout", "truncation", "--truncations", "1,x"], "--truncations 'x': must be a number"),
        (["RUN", "o.png", "--layout", "truncation", "--truncation", "1"], "--truncation 1.0 goes only with another layout"),
        (["RUN", "o.png", "--layout", "truncation", "--per-class", "1"], "--per-class 1 goes only with a sheet of another"),
        (["RUN", "o.png", "--layout", "interpolation", "--steps", "1"], "--steps 1: must be at least 2"),
        (["RUN", "o.png", "--steps", "3"], "--steps 3 goes only with --layout interpolation"),
        (["RUN", "o.png", "--truncations", "1"], "--truncations 1 goes only with --layout truncation"),
        (["RUN", "o.png", "--count", "3"], "--count 3 goes only with a set"),
        (["RUN", "o.npz"], "--count is missing"),
        (["RUN", "o.npz", "--count", "0"], "--count 0"),
        (["RUN", "o.npz", "--count", "1", "--format", "png"], "--format png goes only with a folder"),
        (["RUN", "o/", "--count", "1", "--layout", "interpolation"], "--layout interpolation goes only with a sheet"),
        (["RUN", "RUN", "--count", "1"], "is not empty"),
        (["RUN", "o.png", "--batch", "0"], "--batch 0"),
        (["RUN", "o.png", "--standing", "1"], "--standing 1"),
        (["models:/tiny@first", "o.png", "--standing", "64"], "--standing 64 goes only with a run's folder"),
        (["models:/tiny@first", "o.png", "--checkpoint", "4096"], "--checkpoint 4096 goes only with a run's folder"),
        (["models:/tiny@first", "o.png", "--truncation-method", "scaled-normal"], "goes only with a run's folder"),
        (["models:/tiny@first", "o.png", "--layout", "truncation"], "--layout truncation goes only with a run's folder"),
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
