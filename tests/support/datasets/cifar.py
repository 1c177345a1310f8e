"""CIFAR-10 and CIFAR-100, as they are distributed, with four images a file."""

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_cifar(folder: Path, hundred: bool) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Files as on the data set's page, and (images [n, 32, 32, 3], labels [n]) of each split."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    batches = {"train": ["train.bin"], "test": ["test.bin"]}
    if not hundred:
        batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    expected = {}
    for split, names in batches.items():
        images = rng.integers(0, 256, (len(names), 4, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 100 if hundred else 10, (len(names), 4), np.uint8)
        for name, pixels, numbers in zip(names, images, labels, strict=True):
            head = np.stack([numbers // 5, numbers], 1) if hundred else numbers[:, None]
            records = np.concatenate([head, pixels.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
            (folder / name).write_bytes(records.tobytes())
        expected[split] = images.reshape(-1, 32, 32, 3), labels.reshape(-1)
    (folder / "readme.html").write_text("")
    count, names_file = (100, "fine_label_names.txt") if hundred else (10, "batches.meta.txt")
    (folder / names_file).write_text("".join(f"class {i}\n" for i in range(count)) + "\n")
    if hundred:
        (folder / "coarse_label_names.txt").write_text("fish\n" * 20)
    return expected


def tar_of(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        tar.add(folder, folder.name)
    return file
