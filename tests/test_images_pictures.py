"""PNG, JPEG, BMP and TIFF: grey values, and the geometry that ITK gives them."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from image_case import refused
from PIL import Image as Picture

from shared_components.errors import InputError
from shared_components.images import read_image, read_labels
from shared_components.images.volumes import read_frame, read_volumes

ROWS, COLUMNS = 23, 31
LOSSLESS = [".png", ".bmp", ".tif"]


def grey(dtype=np.uint8, scale=1):
    """(rows, columns), unlike in both directions."""
    ramp = np.add.outer(3 * np.arange(ROWS), 5 * np.arange(COLUMNS)) + 7 * (np.arange(COLUMNS) % 3)
    return (ramp * scale).astype(dtype)


def save(path, values, **options):
    Picture.fromarray(values).save(path, **options)
    return path


def assert_as_itk(image, path):
    """Same values at the same place: every index lies where ITK puts it, in LPS."""
    twin = sitk.ReadImage(str(path))
    assert image.frame.shape == twin.GetSize()
    for index in ((0, 0), (COLUMNS - 1, 0), (0, ROWS - 1), (4, 9)):
        there = twin.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(image.frame.to_mm(np.array(index)) * [-1, -1], there, rtol=1e-6, atol=1e-9)
    theirs = sitk.GetArrayFromImage(twin).T
    theirs = theirs[0] if theirs.ndim == 3 else theirs
    np.testing.assert_array_equal(image.array[0].numpy(), theirs)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".tiff", ".PNG", ".jpg", ".jpeg"])
def test_axes_and_geometry_are_those_of_itk(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", grey())
    image = read_image(path, ndim=2)
    assert image.array.shape == (1, COLUMNS, ROWS) and image.array.dtype == torch.float32
    assert image.array.is_contiguous() and image.dtype == np.uint8
    np.testing.assert_allclose(image.array[0].numpy(), grey().T, atol=8 if "j" in suffix else 0)
    np.testing.assert_array_equal(image.frame.affine, np.diag([-1.0, -1, 1]))
    assert_as_itk(image, path)
    assert read_frame(path, ndim=2).same_grid(image.frame)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", grey(np.uint16, 200))
    image = read_image(path, ndim=2)
    assert image.dtype == np.uint16 and image.array.max() > 40_000
    np.testing.assert_array_equal(image.array[0].numpy(), grey(np.uint16, 200).T)
    assert_as_itk(image, path)


def test_sixteen_bits_in_the_other_byte_order(tmp_path):
    path = tmp_path / "a.tif"
    Picture.fromarray(grey(np.uint16, 200).astype(">u2")).save(path)
    image = read_image(path, ndim=2)
    assert image.dtype == np.dtype(np.uint16)
    assert_as_itk(image, path)


def test_real_values_of_a_tiff(tmp_path):
    path = save(tmp_path / "a.tif", grey(np.float32) / 7)
    assert_as_itk(read_image(path, ndim=2), path)


RESOLUTIONS = [
    (".jpg", {"dpi": (100, 200)}, (0.254, 0.127)),
    (".tif", {"dpi": (100, 200)}, (0.254, 0.127)),
    (".tif", {"resolution_unit": 3, "x_resolution": 50.0, "y_resolution": 25.0}, (0.2, 0.4)),
    (".tif", {"resolution_unit": 1, "x_resolution": 50.0, "y_resolution": 25.0}, (1, 1)),
    (".tif", {"resolution_unit": 3, "x_resolution": 50.0}, (1, 1)),
    (".png", {"dpi": (100, 200)}, (1, 1)),
    (".bmp", {"dpi": (100, 200)}, (1, 1)),
]


@pytest.mark.parametrize(("suffix", "options", "size_mm"), RESOLUTIONS)
def test_a_resolution_counts_where_itk_heeds_it(tmp_path, suffix, options, size_mm):
    path = save(tmp_path / f"a{suffix}", grey(), **options)
    image = read_image(path, ndim=2)
    np.testing.assert_allclose(image.frame.spacing, size_mm)
    assert_as_itk(image, path)


@pytest.mark.parametrize(("unit", "x", "y"), [(2, 100, 50), (1, 0, 0), (1, 100, 0), (3, 100, 50)])
def test_any_density_of_a_jpeg(tmp_path, unit, x, y):
    path = save(tmp_path / "a.jpg", grey())
    data = bytearray(path.read_bytes())
    assert data[6:10] == b"JFIF"
    data[13:18] = struct.pack(">BHH", unit, x, y)
    path.write_bytes(data)
    assert_as_itk(read_image(path, ndim=2), path)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_colours_that_are_grey_are_taken_as_grey(tmp_path, suffix):
    same = np.stack([grey()] * 3, -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", same), ndim=2).array[0], grey().T)
    same[3, 4, 1] += 1
    path = save(tmp_path / f"b{suffix}", same)
    refused(lambda: read_image(path, "moving image", ndim=2), "moving image", path, "3 components", "grey")
    refused(lambda: read_volumes(path, ndim=2), path, "grey")


def test_what_is_behind_a_picture(tmp_path):
    opaque = np.stack([grey()] * 3 + [np.full_like(grey(), 255)], -1)
    for name, values in (("rgba.png", opaque), ("la.png", np.ascontiguousarray(opaque[..., 2:]))):
        np.testing.assert_array_equal(read_image(save(tmp_path / name, values), ndim=2).array[0], grey().T)
    Picture.frombytes("CMYK", (COLUMNS, ROWS), opaque.tobytes()).save(tmp_path / "inks.tif")
    refused(lambda: read_image(tmp_path / "inks.tif", ndim=2), "inks.tif", "4 components")
    opaque[0, 0, 3] = 0
    refused(lambda: read_image(save(tmp_path / "see.png", opaque), ndim=2), "see.png", "4 components")
    refused(lambda: read_image(save(tmp_path / "se.png", opaque[..., 2:].copy()), ndim=2), "se.png", "2 components")


def test_palettes_and_single_bits(tmp_path):
    Picture.fromarray(grey()).convert("P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", ndim=2).array[0], grey().T)
    path = save(tmp_path / "b.png", grey() > 60)
    assert_as_itk(read_image(path, ndim=2), path)
    coloured = Picture.fromarray(grey() % 4)
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    coloured.save(tmp_path / "c.png")
    refused(lambda: read_image(tmp_path / "c.png", ndim=2), "c.png", "3 components")


def test_labels_from_a_picture(tmp_path):
    labels = read_labels(save(tmp_path / "a.png", grey() % 4), ndim=2)
    assert labels.array.dtype == torch.int32 and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.array[0].numpy(), (grey() % 4).T)


def test_a_picture_is_no_volume(tmp_path):
    path = save(tmp_path / "a.png", grey())
    refused(lambda: read_image(path), path, f"2-D (shape {COLUMNS}x{ROWS})", "bundle or configuration for 2-D images")
    refused(lambda: read_volumes(path), path, "2-D")


def test_a_tiff_of_pages_is_a_volume_as_in_itk(tmp_path):
    path = tmp_path / "a.tif"
    pages = [Picture.fromarray(grey() // divisor) for divisor in (1, 2, 3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    refused(lambda: read_image(path, ndim=2), path, "3-D", "save one slice of it", "configuration for volumes")
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0].numpy(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    np.testing.assert_array_equal(image.frame.affine, np.diag([-1.0, -1, 1, 1]))
    pages[1].resize((5, 6)).save(tmp_path / "b.tif", save_all=True, append_images=pages)
    refused(lambda: read_image(tmp_path / "b.tif"), "b.tif", "damaged")


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg"])
def test_damaged_pictures(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (60, 70)).astype(np.uint8)
    whole = save(tmp_path / f"a{suffix}", noise).read_bytes()
    for size in (1, 12, 40, len(whole) // 2):
        path = tmp_path / f"cut{size}{suffix}"
        path.write_bytes(whole[:size])
        refused(lambda path=path: read_image(path, "fixed image", ndim=2), "fixed image", path, "damaged or cut short")
    (tmp_path / f"text{suffix}").write_text("no picture at all " * 20)
    refused(lambda: read_image(tmp_path / f"text{suffix}", ndim=2), f"text{suffix}", "damaged")
    (tmp_path / f"empty{suffix}").write_bytes(b"")
    refused(lambda: read_image(tmp_path / f"empty{suffix}", ndim=2), f"empty{suffix}", "empty file")


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg"])
def test_no_damage_ends_in_another_exception(tmp_path, suffix):
    """Bytes changed at random: a picture or the sentence, nothing else."""
    whole = save(tmp_path / f"a{suffix}", grey()).read_bytes()
    generator = np.random.default_rng(1)
    faults = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in generator.integers(0, min(len(data), 600), 3):
            data[place] = generator.integers(256)
        path = tmp_path / f"b{suffix}"
        path.write_bytes(data)
        try:
            read_volumes(path, ndim=2)
        except InputError:
            faults += 1
    assert faults > 0


def test_a_flipped_bit_in_a_png_is_never_read_as_another_picture(tmp_path):
    ramp = np.add.outer(np.arange(30), np.arange(40)).astype(np.uint8)  # one of these flips only a checksum finds
    whole = save(tmp_path / "a.png", ramp).read_bytes()
    for place in range(8, len(whole)):
        data = bytearray(whole)
        data[place] ^= 4
        path = tmp_path / "b.png"
        path.write_bytes(data)
        try:
            found = read_image(path, ndim=2)
        except InputError:
            continue
        np.testing.assert_array_equal(found.array[0].numpy(), ramp.T)


def test_a_picture_beyond_memory_is_told(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", grey())
    monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", 100)
    refused(lambda: read_image(path, ndim=2), path, "memory", "crop or downsample")


def test_constant_and_all_zero_pictures(tmp_path):
    refused(lambda: read_image(save(tmp_path / "a.png", 0 * grey()), ndim=2), "a.png", "constant")
    refused(lambda: read_labels(save(tmp_path / "b.png", 0 * grey()), ndim=2), "b.png", "no label")
