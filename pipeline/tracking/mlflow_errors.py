"""What MLflow, its database or the way there raise: as one line with the cause, and whether trying again can help."""

import re
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, StorageError, UserError
from pipeline.wording import hide_secrets

_LONGEST = 300
_MODULES = {"mlflow", "requests", "sqlalchemy", "alembic"}

_PERMANENT = (
    (
        r"(Hostname|IP address) mismatch",
        "its certificate is for another name ({said}): write the address with the name that the certificate has",
    ),
    (r"certificate (has expired|is not yet valid)", "its certificate is not valid now ({said}): renew it, or set the clock"),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "its certificate is not trusted ({said}): set MLFLOW_TRACKING_SERVER_CERT_PATH=FILE, the certificate that signed it",
    ),
    (r"WRONG_VERSION_NUMBER", "it does not speak TLS: write http:// in place of https://"),
    (r"CA certificate bundle", "{said}: set MLFLOW_TRACKING_SERVER_CERT_PATH to a file that exists"),
    (
        r"error code 413|413 Client Error",
        "the server, or a proxy before it, refuses a request of this size (413): raise its limit (nginx: client_max_body_size)",
    ),
    (
        r"failed with error code (30\d|4(?!08|25|29)\d\d)|not in a valid JSON format|Invalid url",
        "that is not the address of an MLflow server ({said})",
    ),
    (r"unable to open database file", "cannot open the file: create its folder, or name another file"),
    (r"file is not a database", "the file is not an MLflow store ({said}): name another file"),
    (r"readonly database", "the store may not be written ({said}): ask its owner, or name another store"),
    (
        r"authentication failed|Access denied for user|(role|database) \S+ does not exist|Unknown database",
        "the database does not let you in ({said}): correct user, password or name in its address",
    ),
    (r"out-of-date database schema", "{said}"),
    (r"Can't locate revision", "a newer MLflow has made this store ({said}): install that version"),
    (r"credential configuration failed", "{said}"),
)
"""Expressions for what no second try mends, in this order, and what to do; `said` is what MLflow said."""


class Refused(ConfigError):
    """MLflow is there and says no, and will until somebody does what the message says."""


def first_line(error: Exception) -> str:
    """Return what `error` says, as one line that keeps its cause, without the password that a URI in it may carry."""
    line = hide_secrets((str(error).strip() or type(error).__name__).splitlines()[0])
    if isinstance(error, UserError):  # one line already, with what to do at its end
        return line
    if "(Caused by " in line:  # it stands behind addresses that take up pages, and within quotes and brackets
        cause = re.sub(r"""["']\)*$""", "", line.partition("(Caused by ")[2])
        line = re.split(r"""\): |\(["']|, ["']""", cause)[-1]
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def is_from_store(error: Exception) -> bool:
    """Return whether MLflow, its database or the way there raised `error`: anything else is a fault of this code."""
    return bool({kind.__module__.partition(".")[0] for kind in type(error).__mro__} & _MODULES)


def as_line(error: Exception, uri: str) -> UserError:
    """Return `error`, from the MLflow at `uri`, as one line: Refused if trying again cannot help, else StorageError."""
    return mlflow_refusal(error, uri) or StorageError(f"MLflow at {hide_secrets(uri)}: {first_line(error)}")


def mlflow_refusal(error: Exception, uri: str) -> Refused | None:
    """Return what to do about an `error` that trying again cannot mend; None for a fault that may pass."""
    where, said, code = f"MLflow at {hide_secrets(uri)}", str(error), getattr(error, "error_code", None)
    host = urlsplit(uri).netloc.rpartition("@")[2]
    if "DNS rebinding" in said:
        return Refused(
            f"the MLflow server refuses requests for {host}: start it with `--allowed-hosts {host.partition(':')[0]},{host}`, "
            "or name it as it names itself"
        )
    if code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED") or re.search("40[13] Client Error", said):
        return Refused(
            f"{where} does not let you in ({first_line(error)}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN, to an account that may do this"
        )
    if code in ("INVALID_PARAMETER_VALUE", "NOT_IMPLEMENTED", "FEATURE_DISABLED"):
        return Refused(f"{where}: {first_line(error)}")
    what = next((what for pattern, what in _PERMANENT if re.search(pattern, said)), None)
    return Refused(f"{where}: {what.format(said=first_line(error))}") if what else None
