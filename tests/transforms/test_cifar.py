"""CIFAR's batches as images; pickles that ask for more than arrays and texts are refused before anything runs."""

import codecs
import os
import pathlib
import pickle

import numpy as np
import pytest
from cifar_files import NAMES, draw_arrays, dump, write_cifar10
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulktag.model.image import ImageLimits, load_image
from bulktag.pipeline.cli import run_command
from bulktag.transforms import cifar
from bulktag.transforms.loading import ReadError, read_image
from bulktag.transforms.matching import find_images
from bulktag.transforms.records import ImageRef
from bulktag.transforms.sources import Source, parse_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cifar10(tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py", 20)


def test_every_image_of_every_batch_is_listed_once_with_its_class(folder):
    source = parse_source(str(folder))
    assert source == Source("cifar", str(folder))
    refs = list(find_images(source))
    assert len({ref.uri for ref in refs}) == len(refs) == 120
    _, labels = draw_arrays(20, 5)  # the test batch
    found = {ref.uri: ref.labels for ref in refs}
    assert [found[f"{folder}/test_batch#{i}"] for i in range(20)] == [(NAMES[label],) for label in labels]
    assert all(ref.labels == () for ref in find_images(source, "none"))


def test_pixels_reach_the_network_as_they_were_stored(folder):
    pixels, _ = draw_arrays(20, 0)
    data, ref = read_image(ImageRef(f"{folder}/data_batch_1#7", (), -1, -1), 1 << 20)
    assert (ref.num_bytes, len(data)) == (cifar.BMP_BYTES, cifar.BMP_BYTES)
    image = load_image(data, 32, "squash", ImageLimits())
    np.testing.assert_array_equal(image.pixels_HWC, pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))


def test_an_image_that_is_not_there_is_one_error(folder):
    for uri in (f"{folder}/test_batch#20", f"{folder}/nothing/test_batch#0"):
        with pytest.raises(ReadError) as raised:
            read_image(ImageRef(uri, (), -1, -1), 1 << 20)
        assert raised.value.error_type == "not_found"


def test_a_file_of_such_a_name_is_that_file(tmp_path):
    (tmp_path / "test#1").write_bytes(b"bytes")
    assert read_image(ImageRef(str(tmp_path / "test#1"), (), -1, -1), 100)[0] == b"bytes"


def test_cifar_100_has_its_fine_classes(tmp_path):
    pixels, labels = draw_arrays(12, 3)
    dump(tmp_path / "meta", {b"fine_label_names": [b"apple"] * 100, b"coarse_label_names": [b"fruit"] * 20})
    for name in ("train", "test"):
        content = {b"data": pixels, b"fine_labels": labels, b"coarse_labels": [0] * 12, b"filenames": [b"a.png"] * 12}
        dump(tmp_path / name, content)
    refs = list(find_images(parse_source(str(tmp_path))))
    assert len(refs) == 24 and {ref.labels for ref in refs} == {("apple",)}
    assert [cifar.is_test_image(ref.uri) for ref in refs] == [False] * 12 + [True] * 12
    assert cifar.is_test_image("/photos/a.jpg") is None


@pytest.mark.parametrize("protocol", range(6))
def test_batches_written_by_python_3_are_read_too(protocol, tmp_path):
    pixels, labels = draw_arrays(3, 1)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=protocol))
    batch, _ = cifar._load(str(tmp_path / "batch"))
    np.testing.assert_array_equal(batch.pixels_NX, pixels)
    assert list(batch.labels) == labels


class _Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _attacks(marker):
    """Pickles that would make the file `marker`, or change something, if anything of them ran."""
    command = f"touch {marker}"
    yield "system", pickle.dumps(_Calls(os.system, command), protocol=2)
    yield "eval", pickle.dumps(_Calls(eval, f"__import__('os').system({command!r})"), protocol=2)
    yield "exec", pickle.dumps(_Calls(exec, f"open({str(marker)!r}, 'w')"), protocol=4)
    yield "open", pickle.dumps(_Calls(open, str(marker), "w"), protocol=2)
    yield "in a dict", pickle.dumps({b"data": _Calls(os.system, command), b"labels": []}, protocol=2)
    yield "by name", b"cposix\nsystem\n(V" + command.encode() + b"\ntR."
    yield "as an instance", b"(V" + command.encode() + b"\niposix\nsystem\n."
    yield "through numpy", b"cnumpy.testing._private.utils\nruncstring\n(V" + command.encode() + b"\n}tR."
    yield "object array", pickle.dumps({b"data": np.array([_Calls(os.system, command)], object)}, protocol=2)
    yield "other codec", pickle.dumps(_Calls(codecs.encode, "abc", "rot13"), protocol=2)
    yield "persistent", b"\x80\x02Vx\nQ."
    yield "extension", b"\x80\x02\x82\x01."
    # BUILD: attributes of what was given are set to something else.
    yield "changes", b"\x80\x02c_codecs\nencode\n}V__call__\nI1\nsb."
    yield "changes by slot", b"\x80\x02c_codecs\nencode\nN}V_do\nI1\ns\x86b."


@pytest.mark.parametrize("kind", [kind for kind, _ in _attacks("x")])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(kind, folder, tmp_path, capsys):
    marker = tmp_path / "ran"
    data = dict(_attacks(marker))[kind]
    poisoned = tmp_path / "cifar"
    poisoned.mkdir()
    for path in folder.iterdir():
        (poisoned / path.name).write_bytes(path.read_bytes())
    (poisoned / "data_batch_3").write_bytes(data)
    output = tmp_path / "examples"
    code = run_command(["extract", "--input", str(poisoned), "--output", str(output), "--backbone", "pixels"])
    assert code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "data_batch_3" in message and "expected" in message
    assert not marker.exists() and not output.exists()
    assert cifar._encode_latin1("a") == b"a"  # nothing was changed either
    assert len(list(find_images(parse_source(str(folder))))) == 120


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_batch_is_a_value_error_or_still_a_batch(changes, folder, tmp_path):
    data = bytearray((folder / "data_batch_1").read_bytes())
    for at, value in changes:
        data[at if at < 200 else -(at - 199)] = value
    path = pathlib.Path(tmp_path, "batch")
    path.write_bytes(data)
    try:
        batch = cifar._load_batch(str(path), tuple(changes))
    except ValueError as error:
        assert str(error).startswith("expected ") and str(path) in str(error)
    else:
        assert batch.pixels_NX.dtype == np.uint8 and len(batch.labels) == len(batch.pixels_NX)


def test_a_missing_batch_and_labels_without_a_name_are_told(folder, tmp_path):
    broken = tmp_path / "cifar"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    dump(broken / "batches.meta", {b"label_names": [b"only", b"two"]})
    with pytest.raises(ValueError, match=r"expected labels below 2, got \d: .*data_batch_1"):
        cifar.check(str(broken))
    (broken / "data_batch_4").unlink()
    dump(broken / "batches.meta", {b"label_names": [name.encode() for name in NAMES]})
    with pytest.raises(ValueError, match="found no data_batch_4"):
        cifar.check(str(broken))
