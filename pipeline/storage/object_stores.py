"""Connections to object stores through obstore, with the clouds' own variables and chains of credentials.

s3:// reads AWS_* (or instance metadata, web identity; profiles of ~/.aws where boto3 is installed), gs:// what Google's
tools read (GOOGLE_APPLICATION_CREDENTIALS, application default, metadata), az:// AZURE_STORAGE_*.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.store import AzureStore, GCSStore, S3Store

from pipeline.errors import ConfigError

Store = S3Store | GCSStore | AzureStore

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
"""A request that takes longer is given up, and sent again."""
RETRY_SECONDS = 120.0
"""A store that has not answered by then is dead."""


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """What is to be known of the stores of one scheme."""

    variables: tuple[str, ...]
    """Environment variables that decide how to connect: beginnings of their names."""
    connect: Callable[[str, Mapping[str, str], dict[str, Any]], Store]
    """(bucket, those variables, options that all stores share) -> connection."""
    credentials: str
    """Variables to set where a store asks for credentials."""
    public: str
    """What to set for data that asks for none."""


def find(uri: str, *, patient: bool = False) -> tuple[Store, str] | None:
    """The store of a URI and the key in it; None for schemes that are read in other ways. Raises ConfigError.

    The store retries a request for `RETRY_SECONDS` if it is to be `patient`, else twice: `pipeline.storage.retry` does the
    rest.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in STORES:
        return None
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise ConfigError(f"{uri}: an address is {scheme}://BUCKET/PATH")
    if key.startswith("/") or "//" in key:
        single = re.sub("/{2,}", "/", key).lstrip("/")
        raise ConfigError(
            f"{uri} has a double slash, a folder without a name: name {scheme}://{bucket}/{single}, or copy objects that have "
            "it in their keys to other keys"
        )
    environment = tuple(
        sorted((name, value) for name, value in os.environ.items() if name.startswith(STORES[scheme].variables))
    )
    return _connect(scheme, bucket, environment, REQUEST_SECONDS, RETRY_SECONDS if patient else 0.0), key


def below(uri: str) -> list[str]:
    """Names of objects and folders directly below `uri`, without the empty objects that only make a folder visible."""
    found = find(uri)
    assert found
    store, key = found
    folder = key.rstrip("/") + "/" if key else ""
    try:
        listed = obstore.list_with_delimiter(store, folder or None)
    except obstore.exceptions.BaseError as error:
        if "Encountered object with invalid path" not in str(error) or (keys := _by_boto3(uri, folder)) is None:
            raise
        return keys
    keys = [*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"] if not _is_marker(entry, folder))]
    return [key.rstrip("/").rpartition("/")[2] for key in keys]


def _is_marker(entry: Any, folder: str) -> bool:
    """Whether an object makes a folder visible, as consoles (`folder/`) and Hadoop (`folder_$folder$`) write them."""
    return entry["size"] == 0 and (entry["path"] == folder.rstrip("/") or entry["path"].endswith("_$folder$"))


def _by_boto3(uri: str, folder: str) -> list[str] | None:
    """The same by boto3, which takes keys with an empty part, as `folder//x`; None if boto3 cannot."""
    if not uri.startswith("s3://"):
        return None
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    unsigned = Config(signature_version=UNSIGNED) if os.environ.get("AWS_SKIP_SIGNATURE") == "true" else None
    try:
        client = boto3.client("s3", region_name=_region(os.environ), config=unsigned)
        pages = list(
            client.get_paginator("list_objects_v2").paginate(Bucket=urlsplit(uri).netloc, Prefix=folder, Delimiter="/")
        )
    except (BotoCoreError, ClientError):
        return None
    keys = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]
    keys += [one["Key"] for page in pages for one in page.get("Contents", ())]
    log.warning("%s: ignored the keys that begin with %s/, as they have an empty part", uri, folder)
    return [name for key in keys if (name := key.removeprefix(folder).rstrip("/"))]


def _region(variables: Mapping[str, str]) -> str:
    # AWS's own tools read the second name of the region, obstore only the first.
    return variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"


@functools.lru_cache(maxsize=16)
def _connect(scheme: str, bucket: str, environment: tuple[tuple[str, str], ...], seconds: float, patience: float) -> Store:
    """One connection pool per bucket and environment."""
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": False,
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=min(5, seconds)),
        },
        # obstore's own backoff is spent after three seconds; trouble at a store lasts ten seconds to a minute.
        "retry_config": {
            "max_retries": 10 if patience else 2,
            "retry_timeout": timedelta(seconds=patience or min(5, seconds)),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 4},
        },
    }
    return STORES[scheme].connect(bucket, dict(environment), common)


def _s3(bucket: str, variables: Mapping[str, str], common: dict[str, Any]) -> Store:
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or ""
    common["client_options"]["allow_http"] = endpoint.startswith("http://")
    config: dict[str, Any] = {"region": _region(variables), **({"endpoint": endpoint} if endpoint else {})}
    return S3Store(bucket, config=config, **_profile(variables), **common)  # type: ignore[arg-type]


def _gs(bucket: str, variables: Mapping[str, str], common: dict[str, Any]) -> Store:
    if not (emulator := variables.get("STORAGE_EMULATOR_HOST")):  # as Google's own libraries have it
        return GCSStore(bucket, **common)
    common["client_options"]["allow_http"] = True
    nobody = {"gcs_base_url": emulator, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return GCSStore(bucket, config={"service_account_key": json.dumps(nobody)}, **common)


def _az(bucket: str, variables: Mapping[str, str], common: dict[str, Any]) -> Store:
    plain = variables.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
    common["client_options"]["allow_http"] = plain or variables.get("AZURE_STORAGE_USE_EMULATOR") == "true"
    container, _, host = bucket.partition("@")  # abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH
    account: Any = {"account_name": host.partition(".")[0]} if host else {}
    return AzureStore(container, **account, **common)


def _profile(variables: Mapping[str, str]) -> dict[str, Any]:
    """Credentials of a profile, which obstore does not read by itself, if nothing else is given and boto3 is there."""
    chosen = any(name in variables for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"))
    files = (
        variables.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        variables.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if chosen or not any(Path(file).expanduser().exists() for file in files):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return {"credential_provider": Boto3CredentialProvider()}
    except ImportError as error:
        raise ConfigError(f"profiles of ~/.aws need boto3: pip install boto3, or set AWS_ACCESS_KEY_ID ({error})") from None


_AZURE = ObjectStore(
    variables=("AZURE_",),
    connect=_az,
    credentials="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    public="AZURE_SKIP_SIGNATURE=true",
)
STORES = {
    "s3": ObjectStore(
        variables=("AWS_",),
        connect=_s3,
        credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        public="AWS_SKIP_SIGNATURE=true",
    ),
    "gs": ObjectStore(
        variables=("GOOGLE_", "STORAGE_EMULATOR_HOST"),
        connect=_gs,
        credentials="GOOGLE_APPLICATION_CREDENTIALS",
        public="GOOGLE_SKIP_SIGNATURE=true",
    ),
    "az": _AZURE,
    "abfs": _AZURE,
}
"""By scheme. What is called by another name in a store's own tools is an entry, too."""
