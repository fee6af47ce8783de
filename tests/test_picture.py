"""Laws of pictures: values round to the nearest pixel, tiles stand where they should."""

import numpy as np
import pytest
from PIL import Image

from jaxar.runs.picture import curve, grid, save_grids, to_pil, to_uint8

GAP_COLOUR = (90, 90, 90)


def tiles(count, height, width, channels):
    """Images of one value each, all of them different."""
    values = np.linspace(-1, 1, count, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, channels))


# Pixels.


def test_every_pixel_value_comes_back():
    pixels = np.arange(256)
    np.testing.assert_array_equal(to_uint8(pixels / 127.5 - 1), pixels)
    assert to_uint8(np.zeros(1)).dtype == np.uint8


def test_values_go_to_the_nearest_pixel():
    values = np.linspace(-1, 1, 10_001)
    exact = 255 * (values + 1) / 2
    assert np.abs(to_uint8(values) - exact).max() <= 0.5 + 1e-4


def test_values_outside_of_the_range_are_clipped():
    assert to_uint8(np.asarray([-np.inf, -9, -1.01])).tolist() == [0, 0, 0]
    assert to_uint8(np.asarray([1.01, 9, np.inf])).tolist() == [255, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_hold_their_pixels(channels, mode):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 5, channels))
    pictures = to_pil(images)
    assert [(p.mode, p.size) for p in pictures] == [(mode, (5, 4))] * 2
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(np.asarray(picture).reshape(4, 5, -1), to_uint8(image))


@pytest.mark.parametrize("shape", [(2, 4, 4, 16), (2, 4, 4, 2), (4, 4, 3), (2, 4, 4)])
def test_latents_are_refused(shape):
    with pytest.raises(ValueError) as error:
        to_pil(np.zeros(shape))
    assert str(shape) in str(error.value) and "latents must be decoded" in str(error.value)


# Grids.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns", "lines"), [(6, 3, 2), (5, 3, 2), (2, 3, 1)])
@pytest.mark.parametrize(("gap", "zoom"), [(2, 1), (1, 3), (0, 2)])
def test_tiles_stand_in_reading_order_between_gaps(channels, count, columns, lines, gap, zoom):
    height, width = 4, 5
    images = tiles(count, height, width, channels)
    sheet = grid(images, columns=columns, gap=gap, zoom=zoom)
    assert sheet.size == (
        (columns * (width + gap) + gap) * zoom,
        (lines * (height + gap) + gap) * zoom,
    )
    wanted = np.full((*sheet.size[::-1], 3), GAP_COLOUR, np.uint8)
    for i, image in enumerate(images):
        top = (gap + i // columns * (height + gap)) * zoom
        left = (gap + i % columns * (width + gap)) * zoom
        wanted[top : top + height * zoom, left : left + width * zoom] = to_uint8(image)[0, 0]
    np.testing.assert_array_equal(np.asarray(sheet), wanted)


def test_zoom_repeats_pixels():
    image = np.random.default_rng(0).uniform(-1, 1, (1, 4, 5, 3))
    sheet = np.asarray(grid(image, columns=1, gap=0, zoom=3))
    np.testing.assert_array_equal(sheet, to_uint8(image[0]).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize(("height", "tile"), [(8, 64), (28, 56), (64, 64), (256, 256)])
def test_tiles_become_about_64_pixels_high_but_never_smaller(height, tile):
    assert grid(tiles(1, height, height, 1), columns=1, gap=0).size == (tile, tile)


def test_row_names_take_a_margin_of_their_own():
    images = tiles(4, 8, 8, 1)
    bare, named = (grid(images, columns=2, zoom=2, rows=rows) for rows in ((), ("a", "b")))
    margin = named.width - bare.width
    assert margin > 0 and named.height == bare.height
    np.testing.assert_array_equal(np.asarray(named)[:, margin:], np.asarray(bare))
    lines = np.asarray(named)[:, :margin].reshape(-1, margin, 3)
    written = (lines != GAP_COLOUR).any((1, 2))
    middles = [(2 + row * 10) * 2 + 8 for row in range(2)]
    assert all(written[middle - 6 : middle + 6].any() for middle in middles)
    assert not written[: middles[0] - 8].any() and not written[middles[1] + 8 :].any()


def test_grids_stand_side_by_side_and_latents_are_kept_as_arrays(tmp_path):
    images, latents = tiles(4, 8, 8, 1), tiles(4, 2, 2, 16)
    written = save_grids({"raw": images, "average": images}, tmp_path / "two.png", columns=2)
    with Image.open(written) as picture:
        assert picture.size[0] == 2 * grid(images, columns=2).width
    written = save_grids({"": latents}, tmp_path / "one.png", columns=2)
    assert written.name == "one.npy" and not (tmp_path / "one.png").exists()
    np.testing.assert_array_equal(np.load(written), latents)
    written = save_grids({"raw": latents, "average": latents}, tmp_path / "one.png", columns=2)
    np.testing.assert_array_equal(np.load(written), np.stack([latents, latents]))


# Curves.


def test_a_curve_is_a_png(tmp_path):
    file = tmp_path / "loss.png"
    curve([{"step": i, "loss": 1 / (i + 1)} for i in range(5)], file)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    curve([{"step": i, "loss": float(i)} for i in range(5)], file)
    with Image.open(file) as picture:
        assert (np.asarray(picture.convert("RGB")) != pixels).any()
