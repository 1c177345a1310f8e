"""`python -I loads_alone.py FOLDER`: load a registered model where our packages cannot be imported, draw its golden samples.

The gate runs this file in a process of its own (`pipeline.promotion`), so it imports nothing of ours. Prints one line of JSON:
`images`, and `difference`, the largest between a value of 0..255 and that of the golden samples.
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


def main(folder: Path) -> None:
    """Raises whatever the model raises."""
    sys.meta_path.insert(0, _NoneOfOurs())
    import numpy as np
    import pandas as pd
    from mlflow import pyfunc
    from PIL import Image

    golden = json.loads((folder / "artifacts/config.json").read_text())["golden"]
    wanted = np.asarray(Image.open(folder / "artifacts/golden.png", formats=["PNG"])).astype(int)
    request = pd.DataFrame({"class_id": golden["labels"]}, dtype="int64")
    pictures = pyfunc.load_model(str(folder)).predict(request, params={"seed": golden["seed"]})["png"]
    drawn = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"])).astype(int) for text in pictures]
    print(json.dumps({"images": len(drawn), "difference": int(abs(np.concatenate(drawn, axis=1) - wanted).max())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
