"""`python -I loads_alone.py FOLDER SEED LABELS OUT`: load a registered model where our packages cannot be imported, and draw.

The gate runs this file in a process of its own (`pipeline.registry.gate_proof`), so it imports nothing of ours. It writes what
the model draws to the new file OUT, as bytes [n, H, W, C]. The gate compares them, and believes nothing else that this process
says.
"""

import base64
import importlib.abc
import importlib.machinery
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class _NoneOfOurs(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in ("model", "pipeline", "jobs"):
            raise ModuleNotFoundError(f"{fullname}: a registered model must not need it")
        return None


def main(folder: Path, seed: int, labels: list[int], out: Path) -> None:
    """Raises whatever the model raises."""
    sys.meta_path.insert(0, _NoneOfOurs())
    import numpy as np
    import pandas as pd
    from mlflow import pyfunc
    from PIL import Image

    request = pd.DataFrame({"class_id": labels}, dtype="int64")
    answer = pyfunc.load_model(str(folder)).predict(request, params={"seed": seed})["png"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) for text in answer]
    out.write_bytes(np.stack([np.atleast_3d(np.asarray(picture)) for picture in pictures]).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
