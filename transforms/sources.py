"""What the user named -> `ImageRef`s: folders, globs, manifests and single files."""

import dataclasses
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError

from bulktag.model.image import IMAGE_SUFFIXES
from bulktag.transforms import files
from bulktag.transforms.manifests import MANIFEST_SUFFIXES, check_manifest, read_manifest
from bulktag.transforms.progress import add_progress
from bulktag.transforms.records import ImageError, ImageRef, SkippedFile

EXAMPLES_FILE = "examples.json"
MAX_NAMED_SKIPPED = 20
ERRORS, SKIPPED = "errors", "skipped"

Found = ImageRef | ImageError | SkippedFile


@dataclasses.dataclass(frozen=True)
class Source:
    """One thing that the user passed as input.

    Attributes:
      kind: "folder", "glob", "manifest", "file" or "examples" (a folder that `extract` wrote).
      uri: absolute path or URL; for a glob, the pattern.
    """

    kind: str
    uri: str


def parse_source(text: str) -> Source:
    """Tell what `text` names.

    A path that exists is taken literally, whatever characters it holds; only then is it a pattern.

    Raises:
      ValueError: nothing of this name exists and it is no pattern.
    """
    uri = files.normalise(text)
    if files.is_folder(uri):
        return Source("examples" if files.exists(files.join(uri, EXAMPLES_FILE)) else "folder", uri)
    is_file = files.exists(uri)
    if is_file and uri.lower().endswith(MANIFEST_SUFFIXES):
        return Source("manifest", uri)
    if is_file:
        return Source("file", uri)
    if glob.has_magic(uri):
        return Source("glob", uri)
    raise ValueError(f"expected a folder, file, manifest or glob that exists, found nothing there: {text}")


def check_source(source: Source, label_columns: tuple[str, ...]) -> None:
    """Look at what can be wrong with a source before any job starts.

    Raises:
      ValueError: a manifest without the columns that are needed, or that cannot be parsed.
    """
    if source.kind == "manifest":
        check_manifest(source.uri, label_columns)


def find_images(source: Source, labels: str = "auto", separator: str = "") -> Iterator[Found]:
    """List one source.

    Args:
      source: folder, glob, manifest or file.
      labels: "auto" (the folder's name, or a manifest's label column if there is one), "folder", "none", or the
        names of manifest columns, separated by commas.
      separator: splits a label column's text into several labels; "" for one label a cell.
    Yields:
      an ImageRef for each candidate, an ImageError for what cannot be listed, a SkippedFile for the rest.
    """
    if source.kind == "manifest":
        yield from read_manifest(source.uri, labels, separator)
        return
    with_folder = labels in ("auto", "folder")
    if source.kind == "file":
        found: Iterable = [_local_ref(source.uri)] if files.is_local(source.uri) else _list_remote(source, False)
    elif not files.is_local(source.uri):
        found = _list_remote(source, skip=source.kind == "folder")
    elif source.kind == "folder":
        found = _walk(source.uri)
    else:
        found = _expand_glob(source.uri)
    root = source.uri if source.kind == "folder" else None
    for item in found:
        if with_folder and isinstance(item, ImageRef) and (label := folder_label(item.uri, root)):
            item = item._replace(labels=(label,))
        yield item


def folder_label(uri: str, root: str | None) -> str:
    """Name of the folder that holds `uri`; "" for a file that lies in the source folder itself."""
    folder = uri.rsplit("/", 1)[0]
    if root is not None and folder.rstrip("/") == root.rstrip("/"):
        return ""
    return folder.rsplit("/", 1)[-1]


def skip_reason(relative_path: str) -> str | None:
    """Why a file in a folder is no candidate, or None: candidates look like an image or have no suffix at all."""
    if any(part.startswith(".") for part in relative_path.split("/")):
        return "hidden"
    suffix = os.path.splitext(relative_path)[1].lower()
    return None if not suffix or suffix in IMAGE_SUFFIXES else "not_an_image"


def _walk(root: str) -> Iterator[Found]:
    """Every file below a local folder, links followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    failures: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=failures.append, followlinks=True):
        while failures:
            yield _listing_error(failures.pop())
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()  # a link back to a folder above, or a second way to the same one
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            reason = skip_reason(os.path.relpath(path, root))
            yield SkippedFile(reason, _printable(path)) if reason else _local_ref(path)
    yield from map(_listing_error, failures)


def _expand_glob(pattern: str) -> Iterator[Found]:
    """A pattern names its files itself, so suffixes are not looked at; folders that match are not descended."""
    for path in glob.iglob(pattern, recursive=True):
        if not os.path.isdir(path):
            yield _local_ref(path)


def _local_ref(path: str) -> Found:
    """What one local path is."""
    if _printable(path) != path:
        return ImageError(_printable(path), "match", "bad_name", "expected a file name in UTF-8", -1)
    try:
        status = os.stat(path)
    except OSError:
        return ImageRef(path, (), -1, -1)  # a broken link, or gone already: reading it will say which
    if not stat.S_ISREG(status.st_mode):
        return SkippedFile("not_a_file", path)  # opening a pipe would wait for ever
    return ImageRef(path, (), status.st_size, status.st_mtime_ns // 1000)


def _list_remote(source: Source, skip: bool) -> Iterator[Found]:
    """Objects of a store; object stores have no folders, a name that ends in / stands for one."""
    patterns = {"folder": files.escape(source.uri) + "/**", "file": files.escape(source.uri), "glob": source.uri}
    try:
        for uri, num_bytes, modified_us in files.list_remote(patterns[source.kind]):
            if uri.endswith("/"):
                continue
            reason = skip_reason(uri[len(source.uri) + 1 :]) if skip else None
            yield SkippedFile(reason, uri) if reason else ImageRef(uri, (), num_bytes, modified_us)
    except BeamIOError as error:
        yield ImageError(source.uri, "match", "listing_failed", str(error), -1)


def _listing_error(error: OSError) -> ImageError:
    slug = "permission_denied" if isinstance(error, PermissionError) else "listing_failed"
    return ImageError(_printable(str(error.filename)), "match", slug, error.strerror or str(error), -1)


def _printable(path: str) -> str:
    """The path itself where it is valid UTF-8, else with its odd bytes written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class _FindImages(beam.DoFn):
    """Source -> refs, with errors and skipped files on outputs of their own."""

    def __init__(self, labels: str, separator: str):
        self._labels, self._separator = labels, separator

    def process(self, source: Source):
        for item in find_images(source, self._labels, self._separator):
            if isinstance(item, ImageRef):
                yield item
            else:
                yield beam.pvalue.TaggedOutput(ERRORS if isinstance(item, ImageError) else SKIPPED, item)


def merge_refs(refs: Iterable[ImageRef]) -> ImageRef:
    """One ref for a URI that several sources named: all labels that any of them gives, in sorted order."""
    first, *rest = sorted(refs)
    labels = sorted(set(itertools.chain(first.labels, *(ref.labels for ref in rest))))
    known = next((ref for ref in [first, *rest] if ref.num_bytes >= 0), first)
    return known._replace(labels=tuple(labels))


def _merge_and_count(keyed_refs, progress_dir: str | None) -> ImageRef:
    refs = list(keyed_refs[1])
    if len(refs) > 1:
        beam.metrics.Metrics.counter("match", "named_again").inc(len(refs) - 1)
    add_progress(progress_dir, matched=1)
    return merge_refs(refs)


def _key_by_uri(item) -> tuple:
    return item.uri, item


def _first(keyed_items):
    return min(keyed_items[1])


@dataclasses.dataclass(eq=False)
class _EachUriOnce(beam.PTransform):
    """Records of one kind, one for each URI."""

    kind: type

    def __post_init__(self):
        super().__init__()

    def expand(self, items):
        return (
            items
            | beam.Map(_key_by_uri).with_output_types(tuple[str, self.kind])
            | beam.GroupByKey()
            | beam.Map(_first).with_output_types(self.kind)
        )


@dataclasses.dataclass(eq=False)
class MatchImages(beam.PTransform):
    """List all sources: each URI once, whatever the number of sources that name it.

    The grouping by URI also spreads what follows over the workers.

    Attributes:
      sources: what to list.
      labels, separator: see `find_images`.
      progress_dir: see `add_progress`.
    Returns:
      {"refs": PCollection[ImageRef], "errors": PCollection[ImageError], "skipped": PCollection[SkippedFile],
      "num_matched": PCollection[int] of one element, refs and errors together}
    """

    sources: tuple[Source, ...]
    labels: str = "auto"
    separator: str = ""
    progress_dir: str | None = None

    def __post_init__(self):
        super().__init__()
        if not self.sources:
            raise ValueError("expected at least one source, got none")

    def expand(self, pipeline):
        """Wire it."""
        found = (
            pipeline
            | "Sources" >> beam.Create(self.sources)
            | "SpreadSources" >> beam.Reshuffle()
            | "FindImages"
            >> beam.ParDo(_FindImages(self.labels, self.separator)).with_outputs(ERRORS, SKIPPED, main="found")
        )
        refs = (
            found["found"]
            | "KeyByUri" >> beam.Map(_key_by_uri).with_output_types(tuple[str, ImageRef])
            | "EachUriOnce" >> beam.GroupByKey()
            | "MergeRefs" >> beam.Map(_merge_and_count, self.progress_dir).with_output_types(ImageRef)
        )
        # Overlapping sources find the same unreadable folder, and the same hidden file, once each.
        errors = found[ERRORS] | "EachErrorOnce" >> _EachUriOnce(ImageError)
        skipped = found[SKIPPED] | "EachSkippedOnce" >> _EachUriOnce(SkippedFile)
        num_matched = (refs, errors) | "AllMatched" >> beam.Flatten() | beam.combiners.Count.Globally()
        return {"refs": refs, ERRORS: errors, SKIPPED: skipped, "num_matched": num_matched}
