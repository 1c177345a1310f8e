"""Images of a registered model, drawn by the code that was registered with it."""

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.generation.image_models import ImageModel
    from pipeline.generation.sample_request import SampleRequest


def opener(tracking_uri: str | None = None) -> "Callable[[SampleRequest], ImageModel]":
    """Return what opens models:/NAME@ALIAS or models:/NAME/VERSION for `pipeline.generation.sample`.

    `tracking_uri` is an MLflow URI or a run's folder; None: $MLFLOW_TRACKING_URI. Opening raises as `model_files.load` does.
    """

    def open_registered(request: "SampleRequest") -> "ImageModel":
        from pipeline.generation.image_models import asked_for_pictures
        from pipeline.registry import model_files, versions

        model: Any = model_files.load(request.model, versions.find_store(tracking_uri, request.model))[0]
        # Of older models a sample belongs to its row in the request.
        at_once = "start" not in [param.name for param in model.metadata.get_params_schema().params]

        def ask(class_ids: Sequence[int], **asked: Any) -> list[bytes]:
            import pandas as pd

            answer = model.predict(pd.DataFrame({"class_id": class_ids}, dtype="int64"), asked)
            return [base64.b64decode(text) for text in answer["png"]]

        return asked_for_pictures(request, model.unwrap_python_model().classes, ask, at_once)

    return open_registered
