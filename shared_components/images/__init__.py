"""Images and label maps on disk: read with every fault told in one sentence, written whole or not at all."""

from .files import atomic_path, sha256_of
from .read import Image, read_image, read_labels
from .write import nifti_of, write_image, write_nifti

__all__ = [
    "Image",
    "atomic_path",
    "nifti_of",
    "read_image",
    "read_labels",
    "sha256_of",
    "write_image",
    "write_nifti",
]
