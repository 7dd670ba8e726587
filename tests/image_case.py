"""For the tests of reading and writing: images, files spoilt on purpose, and what a refusal must say."""

import struct

import nibabel as nib
import numpy as np
import pytest

from shared_components.errors import InputError

AFFINE = np.array([[-0.8, 0.5, 0.1, 12.0], [0.4, 0.9, -0.3, -7.0], [0.2, 0.1, 2.4, 30.0], [0, 0, 0, 1]])
Q, R = np.linalg.qr(AFFINE[:3, :3])
OBLIQUE = AFFINE.copy()
OBLIQUE[:3, :3] = Q * np.abs(np.diag(R))
SFORM_CODE, QFORM_CODE, QUATERNION, SROW, PIXDIM, DIM, DATATYPE = 254, 252, 256, 280, 76, 40, 70


def values_of(shape=(5, 6, 7), seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def save(path, values, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(values, affine, dtype=values.dtype), path)
    return path


def patch(path, offset, code, *numbers):
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + code, data, offset, *numbers)
    path.write_bytes(data)
    return path


def sitk_affine(image):
    ndim = image.GetDimension()
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = np.array(image.GetDirection()).reshape(ndim, ndim) * image.GetSpacing()
    affine[:-1, -1] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0][:ndim] + [1.0]) @ affine


def refused(call, *parts):
    """The sentence names the file, the fault and a remedy, and is one line."""
    with pytest.raises(InputError) as info:
        call()
    sentence = str(info.value)
    assert "\n" not in sentence and ";" in sentence, sentence
    for part in parts:
        assert str(part) in sentence, sentence
    return sentence
