"""The connection to Google Cloud Storage: one client a process, what is tried again, refusals as OSErrors.

Retries with growing pauses come from Google's client library, with its rules for what may be tried again.
"""

import contextlib
import errno
import http
import os
import re
import threading
import time
from collections.abc import Iterator

import requests
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.gcsio import GcsIO
from google.api_core import exceptions as api_exceptions
from google.api_core.retry import Retry
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from bulktag.transforms.stored import StoreError

SCHEME = "gs://"
EMULATOR = "STORAGE_EMULATOR_HOST"
# The environment's form of `gcloud config set auth/disable_credentials true`.
# Source: https://cloud.google.com/sdk/docs/properties
ANONYMOUS = "CLOUDSDK_AUTH_DISABLE_CREDENTIALS"
# Google's client asks beside the first request for the bucket's own facts, for traces, whether traces are wanted or
# not: a request that nobody asked for, and a 403 in the audit log of those who may only read objects.
NO_BUCKET_FACTS = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"

MAX_CONNECTIONS = 64

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 10.0, 30.0
# Trying again goes on for so long, with pauses of 0.5, 1, 2, ... 16 seconds at most.
RETRY_FOR_S, FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 0.5, 16.0
# Where nothing has succeeded for so long, nothing is tried again until something does: each of a million images would
# wait for a minute.
MAX_OUTAGE_S = 300.0


class BrokenBody(requests.ConnectionError):
    """A body that ended early or is not what the store sent; worth another try."""


class _Outage:
    """Since when every request has failed; shared by all threads."""

    def __init__(self):
        self._since: float | None = None

    def note_failure(self) -> None:
        self._since = self._since or time.monotonic()

    def note_success(self) -> None:
        self._since = None

    @property
    def is_lasting(self) -> bool:
        return self._since is not None and time.monotonic() - self._since > MAX_OUTAGE_S


_outage = _Outage()
_may_retry = DEFAULT_RETRY._predicate  # Google's rules; only the object that holds them is public


def _worth_another_try(error: Exception) -> bool:
    if not _may_retry(error):
        return False
    _outage.note_failure()
    return not _outage.is_lasting


def retry() -> Retry:
    """Google's way to try again, with this module's patience."""
    return Retry(_worth_another_try, initial=FIRST_PAUSE_S, maximum=MAX_PAUSE_S, timeout=RETRY_FOR_S)


class _Clients:
    """The process's client, made anew where the pipeline's options or the environment have changed."""

    def __init__(self):
        self._lock = threading.Lock()
        self._made_for: tuple | None = None
        self._client: storage.Client | None = None

    def get(self) -> storage.Client:
        # Beam hands the options to its file systems in launchers and workers alike, and has no other way to ask.
        wanted = (id(FileSystems._pipeline_options), os.environ.get(EMULATOR), is_anonymous())
        with self._lock:
            if self._made_for != wanted:
                self._client, self._made_for = _make_client(), wanted
            return self._client


def is_anonymous() -> bool:
    """Whether no credentials are to be looked for, which takes up to 20 seconds where there are none."""
    return bool(os.environ.get(EMULATOR)) or os.environ.get(ANONYMOUS, "").lower() in ("1", "true", "yes", "on")


def _make_client() -> storage.Client:
    os.environ.setdefault(NO_BUCKET_FACTS, "true")
    if is_anonymous():
        client = storage.Client.create_anonymous_client()
    else:  # Beam's, with its way to credentials and its own headers
        client = GcsIO(pipeline_options=FileSystems._pipeline_options or {}).client
    # Ten connections are kept by default; each one beyond is made and thrown away, with its handshake.
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=MAX_CONNECTIONS)
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, adapter)
    return client


_clients = _Clients()


def get_client() -> storage.Client:
    """The process's client."""
    return _clients.get()


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and name of an object; the name is "" for a bucket."""
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    return bucket, name


def get_blob(uri: str) -> storage.Blob:
    """A handle of an object, of which nothing has been asked.

    Raises:
      FileNotFoundError: the URI names none.
    """
    bucket, name = split_uri(uri)
    if not bucket or not name:
        raise FileNotFoundError(errno.ENOENT, "expected gs://BUCKET/NAME", uri)
    return get_client().bucket(bucket).blob(name)


@contextlib.contextmanager
def as_os_errors(uri: str) -> Iterator[None]:
    """What the store or the way to it says, as errors of the system that a disk would have raised."""
    try:
        yield
    except (
        api_exceptions.GoogleAPIError, auth_exceptions.GoogleAuthError, requests.RequestException,
        storage.exceptions.DataCorruption, storage.exceptions.InvalidResponse,
    ) as error:  # fmt: skip
        raise _os_error(error, uri) from error
    else:
        _outage.note_success()


def _os_error(error: Exception, uri: str) -> OSError:
    if isinstance(error, api_exceptions.RetryError) and error.cause is not None:
        error = error.cause
    status = getattr(error, "code", None)
    status = getattr(getattr(error, "response", None), "status_code", status)
    reason = _reason(error)
    if status is not None and not _may_retry(error):
        _outage.note_success()  # it refuses, so it is there
    if status == http.HTTPStatus.NOT_FOUND:
        return FileNotFoundError(errno.ENOENT, "no such object or bucket", uri)
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return PermissionError(errno.EACCES, f"the store answered {int(status)}{_asked_how()}: {reason}", uri)
    if status == http.HTTPStatus.PRECONDITION_FAILED:
        return FileExistsError(errno.EEXIST, "another writer was there before", uri)
    if status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return StoreError("throttled", f"the store answered 429, again and again: {reason}", uri)
    if isinstance(error, auth_exceptions.InvalidOperation):
        # Where an answer of 401 asks for a new token, and there is none to renew.
        return PermissionError(errno.EACCES, f"the store answered 401{_asked_how()}", uri)
    if isinstance(error, auth_exceptions.GoogleAuthError):
        return StoreError("no_credentials", f"Google's credentials cannot be used: {reason}", uri)
    if isinstance(error, requests.Timeout):
        return StoreError("timeout", f"the store did not answer in time: {reason}", uri)
    answered = f"answered {int(status)}" if status else "cannot be reached or broke off"
    return StoreError("store_failed", f"the store {answered}, again and again: {reason}", uri)


def _asked_how() -> str:
    without = isinstance(get_client()._credentials, AnonymousCredentials)
    return ", asked without credentials (gcloud auth application-default login gives some)" if without else ""


def _reason(error: Exception) -> str:
    """In a few words: the whole chain of libraries stands in most messages."""
    if isinstance(error, requests.ConnectionError) and error.args:
        inner = getattr(error.args[0], "reason", None)
        if inner is not None:
            return str(inner).rsplit(": ", 1)[-1]
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"^(GET|POST|PUT|DELETE|PATCH) \S+: ", "", text).split())[:300]
