"""ImageNet, as it is distributed, of four classes."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.packing.sources.imagenet import DEVKIT, TRAIN, VAL

IDS = ("n02119789", "n01440764", "n02100735", "n01443537")  # in the order of ILSVRC2012_ID, which is not the sorted one
WORDS = ("kit fox, Vulpes macrotis", "tench, Tinca tinca", "English setter", "goldfish, Carassius auratus")
TRUTH = (3, 1, 4, 2, 1, 1)
NAMES = ("n01440764 tench", "n01443537 goldfish", "n02100735 English setter", "n02119789 kit fox")


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def tar_with(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_imagenet(folder: Path) -> dict[str, dict[str, bytes]]:
    """The three files in the form in which they are distributed; images by name, for train and val."""
    from scipy.io import savemat

    folder.mkdir(exist_ok=True)
    train = {name: {f"{name}_{i}.JPEG": jpeg(5 * place + i) for i in range(3)} for place, name in enumerate(IDS)}
    (folder / TRAIN).write_bytes(tar_with({f"{name}.tar": tar_with(images) for name, images in train.items()}))
    val = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(50 + i) for i in range(len(TRUTH))}
    (folder / VAL).write_bytes(tar_with(val))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    fields += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    rows = [(i + 1, name, words, "", 0, [], 0, 3) for i, (name, words) in enumerate(zip(IDS, WORDS, strict=True))]
    rows.append((5, "n00000001", "animal", "", 4, [1, 2, 3, 4], 2, 0))  # a group of classes is none
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, fields).reshape(-1, 1)})
    kit = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    files = {
        f"{kit}/readme.txt": b"hello",
        f"{kit}/data/meta.mat": mat.getvalue(),
        f"{kit}/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    (folder / DEVKIT).write_bytes(tar_with(files, "w:gz"))
    return {"train": {key: value for images in train.values() for key, value in images.items()}, "val": val}
