"""Sources -> `ImageRef`s: every image once, whatever the number of sources that name it."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam

from bulktag.transforms import bottleneck_texts, cifar, files
from bulktag.transforms.listing import Found, describe_file, describe_objects, expand_glob, walk_folder
from bulktag.transforms.manifests import read_manifest
from bulktag.transforms.progress import add_progress
from bulktag.transforms.records import ERRORS, ImageError, ImageRef, SkippedFile
from bulktag.transforms.sources import Source

SKIPPED, LABELS = "skipped", "labels"
# Of ImageNet and the sets made from it: https://www.image-net.org/download-faq
_SYNSET = re.compile(r"^n[0-9]{8}[-_ ]")


def find_images(source: Source, labels: str = "auto", separator: str = "", clean: bool = False) -> Iterator[Found]:
    """List one source.

    Args:
      source: any but examples.
      labels: "auto" (the folder's name, a manifest's label column if there is one, CIFAR's own), "folder", "none", or
        the names of manifest columns, separated by commas.
      separator: splits a label column's text into several labels; "" for one label a cell.
      clean: see `clean_label`.
    Yields:
      an ImageRef for each candidate, an ImageError for what cannot be listed, a SkippedFile for the rest.
    """
    for item in _find(source, labels, separator):
        if clean and isinstance(item, ImageRef):
            item = item._replace(labels=tuple(dict.fromkeys(map(clean_label, item.labels))))
        yield item


def clean_label(label: str) -> str:
    """A name for people: without the number of a WordNet synset before it, and with spaces.

    `n02085620-Japanese_spaniel`, as the folders of Stanford's dogs are called, is "Japanese spaniel".
    """
    return _SYNSET.sub("", label).replace("_", " ").strip() or label


def _find(source: Source, labels: str, separator: str) -> Iterator[Found]:
    if source.kind == "manifest":
        yield from read_manifest(source.uri, labels, separator)
        return
    with_folder = labels in ("auto", "folder")
    if source.kind == "cifar":
        yield from (ref if with_folder else ref._replace(labels=()) for ref in cifar.list_images(source.uri))
        return
    # `--input photos/*` names the folders of the classes themselves: then the folder is the label of its own files. In
    # one that holds folders, files beside them belong to no class.
    is_folder = source.kind in ("folder", "bottlenecks")
    root = source.uri if with_folder and is_folder and files.has_folders(source.uri) else None
    for item in _list_local(source) if files.is_local(source.uri) else _list_stored(source):
        if with_folder and isinstance(item, ImageRef) and (label := folder_label(item.uri, root)):
            item = item._replace(labels=(label,))
        yield item


def _list_local(source: Source) -> Iterator[Found]:
    if source.kind == "bottlenecks":
        return walk_folder(source.uri, bottleneck_texts.skip_reason)
    if source.kind == "folder":
        return walk_folder(source.uri)
    return expand_glob(source.uri) if source.kind == "glob" else iter([describe_file(source.uri)])


def _list_stored(source: Source) -> Iterator[Found]:
    if source.kind == "bottlenecks":
        return describe_objects(files.list_below(source.uri), source.uri, bottleneck_texts.skip_reason)
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

    def __init__(self, labels: str, separator: str, clean: bool):
        self._how = (labels, separator, clean)

    def process(self, source: Source):
        labels: set[str] = set()
        for item in find_images(source, *self._how):
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
      labels, separator, clean: see `find_images`.
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
    clean: bool = False

    def __post_init__(self):
        super().__init__()
        if not self.sources:
            raise ValueError("expected at least one source, got none")

    def expand(self, pipeline):
        """Wire it."""
        find = beam.ParDo(_FindImages(self.labels, self.separator, self.clean)).with_output_types(
            tuple[str, _Sighting], labels=str
        )
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
