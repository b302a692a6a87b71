"""What the user named: a folder, a glob, a manifest, a single file, CIFAR's batches, texts of bottlenecks, examples."""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Iterable

from bulktag.transforms import bottleneck_texts, cifar, files
from bulktag.transforms.manifests import MANIFEST_SUFFIXES, check_manifest

EXAMPLES_FILE = "examples.json"
# Kinds of sources that are folders of the user's.
FOLDER_KINDS = ("folder", "cifar", "bottlenecks")
MAX_NAMED_SKIPPED = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """One thing that the user passed as input.

    Attributes:
      kind: "folder", "glob", "manifest", "file", "cifar" (a folder of CIFAR's batches), "bottlenecks" (a folder of
        texts that `retrain.py` wrote) or "examples" (a folder that `extract` wrote).
      uri: absolute path or URL; for a glob, the pattern.
      start, end: of a folder in a store, the part that is meant; see `split_sources`.
    """

    kind: str
    uri: str
    start: str = ""
    end: str = ""


def split_sources(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Sources as parts that can be listed side by side: a store lists a thousand objects at a time.

    Raises:
      ValueError: a store may not be listed.
      OSError: it failed.
    """
    return tuple(part for source in sources for part in _split(source))


def _split(source: Source) -> list[Source]:
    if source.kind != "folder" or files.is_local(source.uri):
        return [source]
    try:
        return [dataclasses.replace(source, start=start, end=end) for start, end in files.split_folder(source.uri)]
    except PermissionError as error:
        raise _closed(source.uri, error) from error


def _closed(uri: str, error: PermissionError) -> ValueError:
    return ValueError(f"expected a source that may be read, got {error.strerror or error}: {uri}")


def parse_source(text: str) -> Source:
    """Tell what `text` names.

    A path that exists is taken literally, whatever characters it holds; only then is it a pattern.

    Raises:
      ValueError: nothing of this name exists and it is no pattern, or it may not be read.
      OSError: its store failed.
    """
    uri = files.normalise(text)
    try:
        return _classify(uri, text)
    except PermissionError as error:
        raise _closed(uri, error) from error


def _classify(uri: str, text: str) -> Source:
    if files.is_folder(uri):
        return Source(_folder_kind(uri), uri)
    is_file = files.exists(uri)
    if is_file and uri.lower().endswith(MANIFEST_SUFFIXES):
        return Source("manifest", uri)
    if is_file:
        return Source("file", uri)
    _check_reachable(uri)
    if glob.has_magic(uri):
        return Source("glob", _literal_start(uri) if files.is_local(uri) else uri)
    raise ValueError(f"expected a folder, file, manifest or glob that exists, found nothing there: {text}")


def _folder_kind(uri: str) -> str:
    if files.is_file(files.join(uri, EXAMPLES_FILE)):
        return "examples"
    if cifar.is_cifar(uri):
        return "cifar"
    return "bottlenecks" if bottleneck_texts.holds_bottlenecks(uri) else "folder"


def _check_reachable(uri: str) -> None:
    try:
        if files.is_local(uri):
            os.lstat(uri)
    except PermissionError as error:
        raise ValueError(f"expected a source that may be read, got one below a closed folder: {uri}") from error
    except OSError:
        return  # no such file: perhaps a pattern


def _literal_start(pattern: str) -> str:
    """The pattern with its first names escaped, as far as they are folders that exist under these very names.

    So `[a]/*.jpg` finds the images of a folder named `[a]`. A folder named `*` matches its own name anyhow.
    """
    folder, done = "/", ""
    names = pattern.split("/")[1:]
    while names:
        path = os.path.join(folder, names[0])
        if glob.has_magic(names[0]) and (fnmatch.fnmatchcase(names[0], names[0]) or not os.path.lexists(path)):
            break
        folder, done = path, f"{done}/{glob.escape(names.pop(0))}"
    return "/".join([done, *names])


def check_source(source: Source, label_columns: tuple[str, ...]) -> None:
    """Look at what can be wrong with a source before any job starts.

    Raises:
      ValueError: a manifest without the columns that are needed, or that cannot be parsed; CIFAR's batches that hold
        anything else.
    """
    if source.kind == "cifar":
        cifar.check(source.uri)
    if source.kind == "manifest":
        check_manifest(source.uri, label_columns)
