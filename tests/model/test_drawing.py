"""The demo's pictures: the same for a seed, of their class, of the promised sizes."""

import numpy as np
import pytest
from PIL import Image

from bulktag.model.drawing import DEMO_CLASSES, draw_demo_images, draw_demo_picture


def _draw(name: str, seed: int) -> Image.Image:
    return draw_demo_picture(np.random.default_rng(seed), name)


def _figure_box(name: str, seed: int, monkeypatch) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Size of the picture, and where its figure was painted: left, top, right, bottom."""
    boxes = []

    def note(rng, image, mask, left_top, style):
        left, top, right, bottom = mask.getbbox()
        boxes.append((left_top[0] + left, left_top[1] + top, left_top[0] + right, left_top[1] + bottom))

    monkeypatch.setattr("bulktag.model.drawing.paint_figure", note)
    return _draw(name, seed).size, boxes[0]


def test_draw_demo_images_writes_a_folder_per_class(tmp_path):
    paths = draw_demo_images(tmp_path, per_class=3, seed=4)
    assert len(paths) == 12 and all(path.is_file() for path in paths)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(DEMO_CLASSES)
    assert {path.parent.name for path in paths} == set(DEMO_CLASSES)
    for path in paths:
        with Image.open(path) as image:
            image.load()


def test_draw_demo_images_is_the_same_for_a_seed_and_another_for_another(tmp_path):
    first, again, other = (
        [path.read_bytes() for path in draw_demo_images(tmp_path / folder, per_class=3, seed=seed)]
        for folder, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == len(first)


def test_draw_demo_images_keeps_earlier_pictures_when_more_are_drawn(tmp_path):
    few = draw_demo_images(tmp_path / "few", per_class=2, seed=3)
    many = draw_demo_images(tmp_path / "many", per_class=4, seed=3)
    by_name = {path.name: path.read_bytes() for path in many}
    assert all(by_name[path.name] == path.read_bytes() for path in few)


def test_draw_demo_images_is_mostly_jpeg_with_some_png_and_webp(tmp_path):
    suffixes = [path.suffix for path in draw_demo_images(tmp_path, per_class=25, seed=5)]
    assert suffixes.count(".jpg") > 60
    assert suffixes.count(".png") > 0 and suffixes.count(".webp") > 0
    for path in tmp_path.rglob("*.*"):
        with Image.open(path) as image:
            assert image.format == {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix]


def test_draw_demo_images_refuses_a_negative_count(tmp_path):
    with pytest.raises(ValueError, match="expected per_class of 0 or more, got -1"):
        draw_demo_images(tmp_path, per_class=-1)


def test_draw_demo_picture_refuses_an_unknown_class():
    with pytest.raises(ValueError, match="expected one of circle, plus, square, triangle, got 'hexagon'"):
        _draw("hexagon", 0)


def test_draw_demo_picture_varies_size_and_orientation():
    sizes = {_draw("circle", seed).size for seed in range(60)}
    assert len(sizes) >= 8
    assert all(min(size) >= 120 and max(size) <= 640 for size in sizes)
    assert any(width < height for width, height in sizes) and any(width > height for width, height in sizes)


def test_demo_figures_lie_inside_the_central_crop_and_are_not_tiny(monkeypatch):
    for seed in range(80):
        (width, height), (left, top, right, bottom) = _figure_box(DEMO_CLASSES[seed % 4], seed, monkeypatch)
        shorter = min(width, height)
        margins = ((width - 0.875 * shorter) / 2 - 1, (height - 0.875 * shorter) / 2 - 1)
        assert left >= margins[0] and right <= width - margins[0]
        assert top >= margins[1] and bottom <= height - margins[1]
        # The surrounding circle spans 25% to 70% of the shorter side; a lying triangle fills 3/4 of it.
        assert 0.75 * 0.25 * shorter - 2 <= max(right - left, bottom - top) <= 0.70 * shorter + 2


def test_demo_classes_draw_different_figures_on_the_same_scene():
    pictures = [np.asarray(_draw(name, 9), np.int16) for name in DEMO_CLASSES if name != "plus"]
    for index, first in enumerate(pictures):
        for second in pictures[index + 1 :]:
            assert first.shape == second.shape
            assert (np.abs(first - second).max(axis=2) > 40).mean() > 0.001


def test_backgrounds_differ_from_picture_to_picture():
    means = np.array([np.asarray(_draw("square", seed), np.float64).mean((0, 1)) for seed in range(40)])
    assert means.std(axis=0).min() > 20
