"""What the user named -> `ImageRef`s: folders, globs, manifests and single files."""

import collections
import dataclasses
import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam

from bulktag.transforms import files
from bulktag.transforms.listing import Found, describe_file, describe_objects, expand_glob, walk_folder
from bulktag.transforms.manifests import MANIFEST_SUFFIXES, check_manifest, read_manifest
from bulktag.transforms.progress import add_progress
from bulktag.transforms.records import ImageError, ImageRef, SkippedFile

EXAMPLES_FILE = "examples.json"
MAX_NAMED_SKIPPED = 20
ERRORS, SKIPPED, LABELS = "errors", "skipped", "labels"


@dataclasses.dataclass(frozen=True)
class Source:
    """One thing that the user passed as input.

    Attributes:
      kind: "folder", "glob", "manifest", "file" or "examples" (a folder that `extract` wrote).
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
        return Source("examples" if files.exists(files.join(uri, EXAMPLES_FILE)) else "folder", uri)
    is_file = files.exists(uri)
    if is_file and uri.lower().endswith(MANIFEST_SUFFIXES):
        return Source("manifest", uri)
    if is_file:
        return Source("file", uri)
    _check_reachable(uri)
    if glob.has_magic(uri):
        return Source("glob", _literal_start(uri) if files.is_local(uri) else uri)
    raise ValueError(f"expected a folder, file, manifest or glob that exists, found nothing there: {text}")


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
    # `--input photos/*` names the folders of the classes themselves: then the folder is the label of its own files. In
    # one that holds folders, files beside them belong to no class.
    root = source.uri if with_folder and source.kind == "folder" and files.has_folders(source.uri) else None
    for item in _list_local(source) if files.is_local(source.uri) else _list_stored(source):
        if with_folder and isinstance(item, ImageRef) and (label := folder_label(item.uri, root)):
            item = item._replace(labels=(label,))
        yield item


def _list_local(source: Source) -> Iterator[Found]:
    if source.kind == "folder":
        return walk_folder(source.uri)
    return expand_glob(source.uri) if source.kind == "glob" else iter([describe_file(source.uri)])


def _list_stored(source: Source) -> Iterator[Found]:
    if source.kind == "folder":
        found = files.list_range(source.uri, source.start, source.end)
        return describe_objects(found, source.uri)
    if source.kind == "glob":
        return describe_objects(files.list_matching(source.uri))
    return describe_objects([files.describe_object(source.uri)])


def folder_label(uri: str, root: str | None) -> str:
    """Name of the folder that holds `uri`; "" for a file that lies in `root` itself."""
    folder = uri.rsplit("/", 1)[0]
    if root is not None and folder.rstrip("/") == root.rstrip("/"):
        return ""
    return folder.rsplit("/", 1)[-1]


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
    generation: int = -1
    md5: str = ""
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
                yield item.uri, _Sighting("image", *item[1:])
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
        return merge_refs(ImageRef(uri, tuple(image.labels), *image[2:6]) for image in images)
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
      "num_matched": PCollection[int] of one element, refs and errors together; empty where there are none,
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
        find = beam.ParDo(_FindImages(self.labels, self.separator)).with_output_types(tuple[str, _Sighting], labels=str)
        # Grouped by number and not reshuffled: a step that is done again gives each source to the same worker, however
        # far the others are.
        sources = pipeline | "Sources" >> beam.Create(enumerate(self.sources)) | "SpreadSources" >> beam.GroupByKey()
        spread = sources | "TakeSources" >> beam.FlatMapTuple(lambda _, group: group)
        found = spread | "FindImages" >> find.with_outputs(LABELS, main="found")
        each = beam.ParDo(_DecideEach(self.progress_dir))
        each = each.with_output_types(ImageRef, errors=ImageError, skipped=SkippedFile)
        grouped = found["found"] | "EachUriOnce" >> beam.GroupByKey()
        decided = grouped | "Decide" >> each.with_outputs(ERRORS, SKIPPED, main="refs")
        num_matched = (
            (decided["refs"], decided[ERRORS])
            | "AllMatched" >> beam.Flatten()
            # Without a default for no images, which would be two more steps: who reads it has one.
            | "CountMatched" >> beam.CombineGlobally(beam.combiners.CountCombineFn()).without_defaults()
        )
        return {
            "refs": decided["refs"],
            ERRORS: decided[ERRORS],
            SKIPPED: decided[SKIPPED],
            "num_matched": num_matched,
            # Not taken from the refs: who needs all labels beside each image would have to wait for what it is part
            # of, and the runner would keep every batch meanwhile.
            LABELS: found[LABELS] | "EachLabelOnce" >> beam.Distinct(),
        }
