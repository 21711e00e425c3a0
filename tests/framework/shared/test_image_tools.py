import json
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from openpi_client import image_tools

GOLDEN_DIR = pathlib.Path(__file__).parents[2] / "golden"


def wave_image(height, width):
    """Return the input of the golden file, as its note in framework.json describes it."""
    y, x, c = np.ogrid[:height, :width, :3]
    return np.floor(127.5 + 127 * np.sin(0.05 * y * (c + 1) + 0.03 * x)).astype(np.uint8)


@pytest.mark.parametrize("name", ["vga", "tall", "small", "same"])
def test_resize_gives_the_golden_pixels(name):
    assert "0.05*y*(c+1)+0.03*x" in json.loads((GOLDEN_DIR / "framework.json").read_text())["resize_note"]
    with np.load(GOLDEN_DIR / "resize_with_pad.npz") as golden:
        height, width, _ = golden[f"{name}/in_shape"]
        expected = golden[f"{name}/pil"]
    result = image_tools.resize_with_pad(wave_image(height, width), 224, 224)
    np.testing.assert_allclose(result.astype(int), expected, rtol=0, atol=1)


def test_an_image_of_the_right_size_comes_back_as_the_same_object():
    for image in (np.zeros((6, 8, 3), np.uint8), np.zeros((2, 6, 8, 3), np.float32)):
        assert image_tools.resize_with_pad(image, 6, 8) is image


@settings(max_examples=50, deadline=None)
@given(*[st.integers(1, 90)] * 4, st.sampled_from([1, 3, 4]))
def test_the_image_is_centered_and_keeps_its_proportions(height, width, new_height, new_width, channels):
    # A shape so thin that the image would vanish is not worth resizing.
    ratio = max(width / new_width, height / new_height)
    if int(height / ratio) == 0 or int(width / ratio) == 0:
        return
    result = image_tools.resize_with_pad(np.full((height, width, channels), 255, np.uint8), new_height, new_width)
    assert result.shape == (new_height, new_width, channels)
    rows, columns = (np.flatnonzero(result[..., 0].any(axis=axis)) for axis in (1, 0))
    for inside, size, source in ((rows, new_height, height), (columns, new_width, width)):
        before, after = inside[0], size - 1 - inside[-1]
        assert after - before in (0, 1)
        assert abs(len(inside) - source / ratio) <= 1
    assert (result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()


def test_leading_axes_stay_and_images_do_not_mix():
    images = np.stack([np.zeros((10, 10, 3), np.uint8), np.full((10, 10, 3), 200, np.uint8)])[:, None]
    result = image_tools.resize_with_pad(images, 20, 20)
    assert result.shape == (2, 1, 20, 20, 3)
    assert (result[0] == 0).all()
    assert (result[1] == 200).all()


@pytest.mark.parametrize(
    "image", [np.zeros((10, 10, 3), np.float32), np.zeros((3, 10, 10), np.uint8), np.zeros((10, 3), np.uint8)]
)
def test_an_image_of_another_kind_is_refused_with_its_dtype_and_shape(image):
    with pytest.raises(ValueError, match=rf"image: found {image.dtype} \[.*\], expected uint8"):
        image_tools.resize_with_pad(image, 20, 20)


def test_conversion_to_uint8_truncates_and_inverts_division_by_255():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(image_tools.convert_to_uint8(levels.astype(np.float32) / 255), levels)
    np.testing.assert_array_equal(image_tools.convert_to_uint8(np.array([0.999])), [254])
    assert image_tools.convert_to_uint8(levels) is levels
