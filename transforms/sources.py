"""What the user named -> `ImageRef`s: folders, globs, manifests and single files."""

import collections
import dataclasses
import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError

from bulktag.model.image import IMAGE_SUFFIXES
from bulktag.transforms import files
from bulktag.transforms.manifests import MANIFEST_SUFFIXES, check_manifest, read_manifest
from bulktag.transforms.progress import add_progress
from bulktag.transforms.records import ImageError, ImageRef, SkippedFile

EXAMPLES_FILE = "examples.json"
MAX_NAMED_SKIPPED = 20
ERRORS, SKIPPED, LABELS = "errors", "skipped", "labels"

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
        return Source("glob", _literal_start(uri) if files.is_local(uri) else uri)
    raise ValueError(f"expected a folder, file, manifest or glob that exists, found nothing there: {text}")


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
    return None if suffix in ("", ".") or suffix in IMAGE_SUFFIXES else "not_an_image"


def _folders(root: str) -> Iterator[tuple[str, list[str] | OSError]]:
    """(folder, names of its files, or why it cannot be listed) of a local folder and all below it.

    Each folder comes once: the ones that only links lead to last, and never through a loop.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [root], collections.deque()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=_entry_name)
        except OSError as error:
            yield folder, error
            continue
        below = [entry for entry in entries if _is_folder(entry)]
        folders += [entry.path for entry in reversed(below) if not entry.is_symlink()]
        links += [entry.path for entry in below if entry.is_symlink()]
        below_names = {entry.name for entry in below}
        yield folder, [entry.name for entry in entries if entry.name not in below_names]


def _entry_name(entry: os.DirEntry) -> str:
    return entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, or gone: reading it will say which


def _walk(root: str) -> Iterator[Found]:
    """Every file below a local folder, links followed."""
    prefix = len(root.rstrip("/")) + 1
    for folder, names in _folders(root):
        if isinstance(names, OSError):
            hidden = skip_reason(folder[prefix:]) == "hidden"
            yield SkippedFile("hidden", files.printable(folder)) if hidden else _listing_error(folder, names)
            continue
        for name in names:
            path = os.path.join(folder, name)
            reason = skip_reason(path[prefix:])
            yield SkippedFile(reason, files.printable(path)) if reason else _local_ref(path)


def _expand_glob(pattern: str) -> Iterator[Found]:
    """A pattern names its files itself, so suffixes are not looked at; folders that match are not descended.

    `**` stands for any number of folders, none of them hidden. (The standard library's follows loops of links.)
    """
    if pattern.endswith("/**"):
        pattern += "/*"
    head, recursive, tail = pattern.partition("/**/")
    if not recursive:
        for path in sorted(glob.iglob(pattern)):
            if not os.path.isdir(path):
                yield _local_ref(path)
        return
    for root in sorted(glob.iglob(head)) if head else ["/"]:
        for folder, names in _folders(root) if os.path.isdir(root) else ():
            if skip_reason(folder[len(root.rstrip("/")) + 1 :]) == "hidden":
                continue
            if isinstance(names, OSError):
                yield _listing_error(folder, names)
            else:
                yield from _expand_glob(f"{glob.escape(folder.rstrip('/'))}/{tail}")


def _local_ref(path: str) -> Found:
    """What one local path is."""
    if not files.is_utf8(path):
        return ImageError(files.printable(path), "match", "bad_name", "expected a file name in UTF-8", -1)
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


def _listing_error(folder: str, error: OSError) -> ImageError:
    slug = "permission_denied" if isinstance(error, PermissionError) else "listing_failed"
    return ImageError(files.printable(folder), "match", slug, error.strerror or str(error), -1)


def merge_refs(refs: Iterable[ImageRef]) -> ImageRef:
    """One ref for a URI that several sources named: all labels that any of them gives, in sorted order."""
    first, *rest = sorted(refs)
    labels = sorted(set(itertools.chain(first.labels, *(ref.labels for ref in rest))))
    known = next((ref for ref in [first, *rest] if ref.num_bytes >= 0), first)
    return known._replace(labels=tuple(labels))


class _Sighting(NamedTuple):
    """What one source said about a URI: the fields of an ImageRef, ImageError or SkippedFile, without the URI."""

    kind: str  # image, error or skipped
    labels: tuple[str, ...] = ()
    num_bytes: int = -1
    modified_us: int = -1
    stage: str = ""
    reason: str = ""  # or the error's type
    message: str = ""


beam.coders.registry.register_coder(_Sighting, beam.coders.RowCoder)


class _FindImages(beam.DoFn):
    """Source -> (URI, sighting); each label on an output of its own."""

    def __init__(self, labels: str, separator: str):
        self._labels, self._separator = labels, separator

    def process(self, source: Source):
        labels: set[str] = set()
        for item in find_images(source, self._labels, self._separator):
            if isinstance(item, ImageRef):
                for label in set(item.labels) - labels:
                    yield beam.pvalue.TaggedOutput(LABELS, label)
                labels.update(item.labels)
                yield item.uri, _Sighting("image", tuple(item.labels), item.num_bytes, item.modified_us)
            elif isinstance(item, ImageError):
                error = {"stage": item.stage, "reason": item.error_type, "message": item.message}
                yield item.uri, _Sighting("error", num_bytes=item.num_bytes, **error)
            else:
                yield item.uri, _Sighting("skipped", reason=item.reason)


def decide(uri: str, sightings: Iterable[_Sighting]) -> Found:
    """What a URI is, of which several sources may have said different things.

    An image to one of them is an image: reading it will tell. Otherwise an error to one of them is an error.
    """
    by_kind: dict[str, list[_Sighting]] = collections.defaultdict(list)
    for sighting in sightings:
        by_kind[sighting.kind].append(sighting)
    if images := by_kind["image"]:
        return merge_refs(ImageRef(uri, tuple(image.labels), image.num_bytes, image.modified_us) for image in images)
    if errors := by_kind["error"]:
        error = min(errors)
        return ImageError(uri, error.stage, error.reason, error.message, error.num_bytes)
    return SkippedFile(min(by_kind["skipped"]).reason, uri)


class _DecideEach(beam.DoFn):
    """(URI, sightings) -> one record, errors and skipped files on outputs of their own."""

    def __init__(self, progress_dir: str | None):
        self._progress_dir = progress_dir

    def process(self, keyed_sightings):
        uri, sightings = keyed_sightings
        sightings = list(sightings)
        item = decide(uri, sightings)
        if isinstance(item, SkippedFile):
            _count("skipped")
            yield beam.pvalue.TaggedOutput(SKIPPED, item)
            return
        add_progress(self._progress_dir, matched=1)
        _count("named_again", len(sightings) - 1)
        if isinstance(item, ImageError):
            _count("failed")
            add_progress(self._progress_dir, errors=1)
            yield beam.pvalue.TaggedOutput(ERRORS, item)
        else:
            _count("found")
            yield item


def _count(outcome: str, num: int = 1) -> None:
    if num:
        beam.metrics.Metrics.counter("match", outcome).inc(num)


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
      "num_matched": PCollection[int] of one element, refs and errors together,
      "labels": PCollection[str], each label of any image once}
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
            | "FindImages" >> beam.ParDo(_FindImages(self.labels, self.separator)).with_outputs(LABELS, main="found")
        )
        decided = (
            found["found"]
            | "KeyByUri" >> beam.Map(_as_it_is).with_output_types(tuple[str, _Sighting])
            | "EachUriOnce" >> beam.GroupByKey()
            | "Decide" >> beam.ParDo(_DecideEach(self.progress_dir)).with_outputs(ERRORS, SKIPPED, main="refs")
        )
        # Outputs of one step share its type, so each gets its own here: Beam picks the coder by it.
        refs = decided["refs"] | "Refs" >> beam.Map(_as_it_is).with_output_types(ImageRef)
        errors = decided[ERRORS] | "Errors" >> beam.Map(_as_it_is).with_output_types(ImageError)
        skipped = decided[SKIPPED] | "Skipped" >> beam.Map(_as_it_is).with_output_types(SkippedFile)
        num_matched = (refs, errors) | "AllMatched" >> beam.Flatten() | beam.combiners.Count.Globally()
        # Not taken from the refs: whoever needs all labels beside each image would have to wait for what it makes
        # itself, and the runner would keep every batch meanwhile.
        labels = found[LABELS] | "Labels" >> beam.Map(_as_it_is).with_output_types(str) | "EachLabelOnce" >> beam.Distinct()
        return {"refs": refs, ERRORS: errors, SKIPPED: skipped, "num_matched": num_matched, LABELS: labels}


def _as_it_is(item):
    return item
