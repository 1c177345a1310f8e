"""Places that a run's configuration names: the user's own word, or that of a folder which somebody may have sent."""

from dataclasses import replace

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.data.loader import DataConfig
from pipeline.storage.trusted_stores import check_read, note


def checkpoint_uri(config: RunConfig) -> str:
    """Return where a run that the user trains keeps its checkpoints."""
    return config.checkpoint.uri or storage.join(config.run, "checkpoints")


def note_run(config: RunConfig) -> None:
    """Remember every store in a configuration that the user trains."""
    data = config.data
    places = [data.uri, *(part.uri for part in data.mix.values()), config.checkpoint.uri, config.init, *data.allow]
    note("read", places)
    note("send", [config.tracking.uri])


def kept_checkpoints(config: RunConfig) -> str:
    """Return where the checkpoints of a run's folder are, which somebody may have sent. Raises ConfigError as `check_read`."""
    check_read(config.run, uri := checkpoint_uri(config), f"checkpoint.uri in {config.run}/config.yaml")
    return uri


def kept_data(config: RunConfig) -> DataConfig:
    """Return the data that a run's folder names, to be read without a cache. Raises ConfigError as `check_read`."""
    for uri in filter(None, [config.data.uri, *(part.uri for part in config.data.mix.values())]):
        check_read(config.run, uri, f"data in {config.run}/config.yaml")
    return replace(config.data, cache=None, allow=[])
