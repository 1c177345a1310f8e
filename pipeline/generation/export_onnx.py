"""A generator for those without torch: one ONNX file with the weights, golden samples, and what its inputs mean."""

import base64
import copy
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.latents import RandomStream, latents
from model.networks import Generator
from model.spectral import bake
from pipeline.errors import ConfigError
from pipeline.generation.export import GOLDEN_SEED, describe, golden_labels, golden_png
from pipeline.generation.load import TrainedGenerator
from pipeline.progress import Tell, progress

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""Version of ONNX's operators; onnxruntime has known them since 1.14."""
IR_VERSION = 8
"""Version of the file's format, the newest that onnxruntime 1.14 reads; torch writes a later one, with nothing of it in use."""
TOLERANCE = 1e-4
"""Of an image's values in -1..1: a hundredth of a step of a pixel."""

_TEXTS = {
    "inputs": "z [n, latent_dim] float32; class_id [n] int64, from 0 to the number of classes - 1; others are an error",
    "outputs": "images [n, channels, resolution, resolution] float32 in -1..1; a pixel is round((x + 1) * 127.5)",
    "truncation": "without: z is standard normal. At t > 0: each value of z is a standard normal on the condition |z| <= t "
    "(draw those outside again); the nearer to 0, the better and the less varied. Batch-norm statistics are those of no "
    "truncation",
}


class _Drawer(nn.Module):
    """z [n, latent_dim], class_id [n] -> images, with all that no sample changes computed beforehand."""

    one_hot: Tensor

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = copy.deepcopy(generator).cpu().eval()
        bake(self.generator)
        # A one-hot function checks its labels, which a graph cannot; a table of its rows needs no check.
        self.embeds = hasattr(self.generator, "shared")
        self.register_buffer("one_hot", torch.eye(1 if self.embeds else generator.config.num_classes), persistent=False)

    def forward(self, z: Tensor, class_id: Tensor) -> Tensor:
        # ONNX's Gather takes -1 for the last row, but refuses numbers from the number of rows on.
        class_id = torch.where(class_id < 0, self.generator.config.num_classes, class_id)
        if not self.generator.config.conditional:
            z = z * F.embedding(class_id, self.one_hot)  # the only row is 1: nothing else would look at the class
        return self.generator(z, class_id if self.embeds else F.embedding(class_id, self.one_hot))


def save_onnx(trained: TrainedGenerator, path: Path) -> None:
    """Write `trained` to the file `path`. Raises ConfigError without the extra `onnx`, RuntimeError if it draws otherwise."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 (what torch.onnx writes with)
    except ImportError as error:
        raise ConfigError(f"--format onnx needs {error.name}: pip install 'biggan-pipeline[onnx]'") from None
    if not (config := trained.generator.config).g_entry.onnx:
        raise ConfigError(f"--format onnx: the {config.generator} G has no ONNX graph: pass --format mlflow")
    with progress("writing the ONNX graph", 3, "step") as tell:
        path.write_bytes(_checked(trained, tell))


def _checked(trained: TrainedGenerator, tell: Tell) -> bytes:
    """Return the file's bytes, in three steps. Raises RuntimeError if the graph draws otherwise than the network."""
    import onnx
    import onnxruntime

    labels = golden_labels(trained)
    z = latents(GOLDEN_SEED, RandomStream.SAMPLES, 0, len(labels), trained.config.latent_dim)
    model = _graph(trained.generator, len(labels) + 1)  # not as many as golden samples: they prove that any number is fine
    tell(1)
    about = describe(trained) | _TEXTS | {"latent_dim": z.shape[1], "opset": OPSET}
    # The golden samples: these latents and classes gave these pictures, side by side, where the file was written.
    about |= {"golden_z": _base64(z.numpy().astype("<f4").tobytes()), "golden_class_id": labels.tolist()}
    about |= {"golden_png": _base64(golden_png(trained))}
    onnx.helper.set_model_props(model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    data = bytes(model.SerializeToString())
    tell(1)

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    drawn = session.run(None, {"z": z.numpy(), "class_id": labels.numpy()})[0]
    with torch.no_grad():
        device = next(trained.generator.parameters()).device
        wanted = trained.generator(z.to(device), labels.to(device)).cpu().numpy()
    if not (off := float(np.abs(drawn - wanted).max())) <= TOLERANCE:
        raise RuntimeError(f"the ONNX graph draws other images than the network: values differ by {off}")
    tell(1)
    return data


def _graph(generator: Generator, samples: int) -> "ModelProto":
    """The generator in ONNX, for any number of samples at once; an example of `samples` > 1 is what torch traces."""
    n = torch.export.Dim("n", min=1)
    example = (torch.zeros(samples, generator.config.latent_dim), torch.zeros(samples, dtype=torch.int64))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it would say that there is no torchvision
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own deprecated calls
        program = torch.onnx.export(
            _Drawer(generator).eval(),
            example,
            input_names=["z", "class_id"],
            output_names=["images"],
            dynamic_shapes=({0: n}, {0: n}),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
