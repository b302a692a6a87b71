"""The graphs hold for any number of images: nothing gathers them in one place, and their pixels never travel."""

import apache_beam as beam
import pytest
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

from bulktag.pipeline.config import ExtractConfig, TagConfig
from bulktag.pipeline.dry_run import _build
from bulktag.pipeline.runners import check_runner
from bulktag.transforms.sources import Source

GROUP, COMBINE = common_urns.primitives.GROUP_BY_KEY.urn, common_urns.composites.COMBINE_PER_KEY.urn
# They emit one element for each image; for each file that they have written, or each label.
MANY, FEW = ("FindImages", "ReadShards"), ("WriteTags", "WriteErrors", "WriteShards", "EachLabelOnce")


class Graph:
    """A pipeline as runners see it."""

    def __init__(self, pipeline: beam.Pipeline):
        self.components = pipeline.to_runner_api().components
        steps = self.components.transforms
        self.primitives = {key: step for key, step in steps.items() if not step.subtransforms}
        self.producer = {out: key for key, step in self.primitives.items() for out in step.outputs.values()}
        self.combines = {key for step in steps.values() if step.spec.urn == COMBINE for key in self._below(step)}

    def _below(self, step):
        for key in step.subtransforms:
            yield key
            yield from self._below(self.components.transforms[key])

    def groups(self):
        """(name, key of the step, kind of its keys, all coders of what it takes)."""
        for key, step in self.primitives.items():
            if step.spec.urn == GROUP:
                (collection,) = step.inputs.values()
                coder = self.components.pcollections[collection].coder_id
                pair = self.components.coders[coder]
                yield step.unique_name, key, self.components.coders[pair.component_coder_ids[0]], self._coders(coder)

    def _coders(self, coder_id):
        coder = self.components.coders[coder_id]
        yield coder
        for component in coder.component_coder_ids:
            yield from self._coders(component)

    def side_inputs(self):
        """(name of the step, the collection) of each collection that is handed to all workers."""
        for step in self.primitives.values():
            if step.spec.urn == common_urns.primitives.PAR_DO.urn:
                payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
                for tag in payload.side_inputs:
                    yield step.unique_name, step.inputs[tag]

    def is_fed_by_every_image(self, key) -> bool:
        """Whether a step takes an element for each image."""
        return any(self.comes_from_every_image(source) for source in self.primitives[key].inputs.values())

    def comes_from_every_image(self, collection, seen=()) -> bool:
        """Whether a collection has an element for each image, as far as its steps tell.

        Combining, making labels distinct and writing files make few elements of many.
        """
        key = self.producer[collection]
        name = self.primitives[key].unique_name
        if key in seen or key in self.combines or any(word in name for word in FEW):
            return False
        if any(word in name for word in MANY):
            return True
        sources = self.primitives[key].inputs.values()
        return any(self.comes_from_every_image(source, (*seen, key)) for source in sources)


def build(kind: str) -> Graph:
    source = Source("examples" if kind == "retag" else "folder", "gs://bucket/photos")
    if kind == "extract":
        config = ExtractConfig(input=("x",), output="/o")
    else:
        config = TagConfig(input=("x",), model="m", output="/o")
    return Graph(_build(config, (source,), check_runner((), 1)))


@pytest.fixture(params=["extract", "tag", "retag"])
def graph(request):
    return build(request.param)


def test_images_are_grouped_by_their_uris_and_by_nothing_that_many_share(graph):
    groups = list(graph.groups())
    assert groups
    for name, key, key_coder, _ in groups:
        # A combine's key may be one for all: it gets what each worker has added up already, and not the images.
        if key not in graph.combines and graph.is_fed_by_every_image(key):
            assert key_coder.spec.urn == common_urns.coders.STRING_UTF8.urn, name


def test_pixels_and_bottlenecks_never_cross_a_shuffle(graph):
    for name, _, _, coders in graph.groups():
        for coder in coders:
            assert b"BatchCoder" not in coder.spec.payload and b"PixelBatch" not in coder.spec.payload, name


def test_what_all_workers_get_does_not_grow_with_the_images(graph):
    found = list(graph.side_inputs())
    assert found
    for name, collection in found:
        assert not graph.comes_from_every_image(collection), name


def test_the_graph_itself_does_not_grow_with_the_images(graph):
    for step in graph.primitives.values():
        assert len(step.spec.payload) < 200_000, step.unique_name


def test_a_step_that_gathers_every_image_would_be_found():
    pipeline = beam.Pipeline()
    found = pipeline | "FindImages" >> beam.Create(["uri"])
    _ = pipeline | beam.Create([None]) | beam.Map(lambda _, uris: uris, beam.pvalue.AsList(found | beam.Map(str)))
    graph = Graph(pipeline)
    assert any(graph.comes_from_every_image(collection) for _, collection in graph.side_inputs())


def test_a_group_that_gathers_every_image_would_be_found():
    pipeline = beam.Pipeline()
    _ = pipeline | "FindImages" >> beam.Create(["uri"]) | beam.Map(lambda uri: (1, uri)) | beam.GroupByKey()
    graph = Graph(pipeline)
    (group,) = graph.groups()
    assert graph.is_fed_by_every_image(group[1]) and group[2].spec.urn != common_urns.coders.STRING_UTF8.urn
