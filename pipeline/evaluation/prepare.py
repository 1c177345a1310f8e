"""What an evaluation needs before it draws samples: the network that looks, and what it says of the real images."""

from collections.abc import Callable, Mapping

from pipeline.data.manifest import load_manifest
from pipeline.evaluation.classifier import obtain_judge
from pipeline.evaluation.extractors import PRETRAINED
from pipeline.evaluation.measure import Judged, Real, extract
from pipeline.evaluation.networks import Extractor, from_judge, pretrained
from pipeline.evaluation.reference_cache import obtain
from pipeline.evaluation.request import EvaluationRequest
from pipeline.evaluation.splits import Split, held_out, read_alike, training_shards
from pipeline.evaluation.worker_pool import WorkerPool
from pipeline.generation.load import TrainedGenerator
from pipeline.runs.evaluation_document import JudgeFile

Say = Callable[[str], None]


def find_splits(request: EvaluationRequest) -> dict[str, Split]:
    """Return `test`, and `train` where it is needed or known."""
    train = request.train
    if train is None and (request.extractor not in PRETRAINED or request.reference == "train" or request.test is None):
        train = training_shards(request.model)
    test = request.test or held_out(train or "")  # without --test, --train is known
    return {"test": Split(test, load_manifest(test))} | ({"train": Split(train, load_manifest(train))} if train else {})


def find_extractor(
    request: EvaluationRequest, trained: TrainedGenerator, splits: Mapping[str, Split], say: Say
) -> tuple[Extractor, JudgeFile | None]:
    """Return the network that looks, and what the document says of a judge, which is trained if need be."""
    name = request.extractor
    if name in PRETRAINED:
        return pretrained(name, trained.config.channels, request.resizer, request.weights, request.weights_sha256), None
    train = splits["train"]
    data = read_alike(request.model, train.uri, request.crop, trained.config.resolution)
    expert = obtain_judge(data, train.manifest, request.cache_folder, say)
    made = JudgeFile(file=expert.place, key=expert.key, seconds=expert.seconds, train=train.uri, test=splits["test"].uri)
    return from_judge(name or f"clf-{expert.key[:8]}", expert.sha256, expert.classifier), made


def look_at_real(
    request: EvaluationRequest,
    extractor: Extractor,
    trained: TrainedGenerator,
    name: str,
    split: Split,
    peers: WorkerPool,
    say: Say,
) -> tuple[Real, Judged]:
    """Return the images of the split `name`, and what `extractor` says of them."""
    data = read_alike(request.model, split.uri, request.crop, trained.config.resolution)
    images = Real(data, split.manifest, request.count(name, split))
    return images, obtain(
        extractor, images, request.cache_folder, lambda: extract(peers, extractor, images, request.batch), say
    )
