import numpy as np
import pytest
from PIL import Image

from benchmarks.photos import draw_photos, draw_picture, link_photos

SIZE_PX = (100, 75)


def _bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def test_drawn_photos_are_distinct_jpegs_of_about_the_size_in_both_orientations(tmp_path):
    folder = draw_photos(tmp_path, 30, SIZE_PX)
    contents = _bytes(folder)
    sizes = [Image.open(path).size for path in folder.glob("*.jpg")]
    assert len(set(contents)) == 30
    assert all(90 <= max(size) <= 100 and 68 <= min(size) <= 75 for size in sizes)
    assert {width > height for width, height in sizes} == {True, False}


def test_the_same_seed_draws_the_same_files_and_more_of_them_when_asked(tmp_path):
    few = _bytes(draw_photos(tmp_path / "a", 4, SIZE_PX, seed=3))
    more = _bytes(draw_photos(tmp_path / "a", 6, SIZE_PX, seed=3))
    at_once = _bytes(draw_photos(tmp_path / "b", 6, SIZE_PX, seed=3))
    other = _bytes(draw_photos(tmp_path / "c", 6, SIZE_PX, seed=4))
    assert few == more[:4]
    assert more == at_once
    assert not set(other) & set(more)


def test_a_drawn_picture_has_the_falling_spectrum_and_the_contrast_of_photos():
    pixels_HWC = draw_picture(np.random.default_rng(0), 256, 192).astype(float)
    spectrum_HW = np.abs(np.fft.fft2(pixels_HWC.mean(axis=2) - pixels_HWC.mean()))
    frequency_HW = np.hypot(np.fft.fftfreq(192)[:, None] * 192, np.fft.fftfreq(256)[None, :] * 256)
    means = [spectrum_HW[(frequency_HW > low) & (frequency_HW <= 2 * low)].mean() for low in (4, 8, 16, 32)]
    slopes = np.diff(np.log2(means))
    assert 20 < pixels_HWC.std() < 80
    assert np.all((slopes < -0.4) & (slopes > -2.2))  # amplitude falls about as 1 / frequency


def test_linked_photos_reach_the_count_in_turns(tmp_path):
    source = draw_photos(tmp_path, 3, SIZE_PX)
    (source / "notes.txt").write_text("no photo")
    folder = link_photos(source, tmp_path / "set", 7)
    assert [path.name for path in sorted(folder.iterdir())] == [f"{i:06}.jpg" for i in range(7)]
    assert (folder / "000004.jpg").read_bytes() == (source / "000001.jpg").read_bytes()


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected JPEGs, found none"):
        link_photos(tmp_path, tmp_path / "set", 3)
