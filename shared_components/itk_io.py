r"""Transforms in the files of ITK, ANTs and Slicer; the one place where LPS millimetres exist.

In memory a transform is a `PhysicalField` or a world matrix, both RAS mm and pull-back: a point of the fixed image goes
to its partner in the moving image. That is also what ITK's resampling and ``antsApplyTransforms`` expect of a file, so
only the signs of the first two axes change: u_lps = F u_ras, A_lps = F A_ras F with F = diag(-1, -1, 1) (2-D:
diag(-1, -1)).

| file | holds |
|---|---|
| .nii, .nii.gz | displacement field, 5-D (X, Y, Z, 1, 3), intent 1007, LPS mm (1006 is read as RAS, as in ITK) |
| .mha, .mhd, .nrrd | displacement field, vector pixels, LPS mm (read only) |
| .tfm, .txt | ITK text transform: affine, rigid, translation, or a composite of these |
| .mat | ANTs' binary affine (read only) |
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.spatial.transform import Rotation

from .errors import InputError
from .geometry import Frame
from .images import atomic_path, nifti_of, write_nifti
from .images.files import existing_file, suffix_of
from .images.formats import ITK_SUFFIXES, RawFile, load_raw
from .transform import PhysicalField

INTENT_VECTOR, INTENT_DISPLACEMENT = 1007, 1006
FIELD_SUFFIXES = (".nii", ".nii.gz", *ITK_SUFFIXES)
_SINGULAR = 1e-9
_NO_MAT = (MatReadError, ValueError, TypeError, OSError, NotImplementedError, LookupError, MemoryError)


def write_field(path: str | os.PathLike, field: PhysicalField) -> None:
    """Write a displacement field that ITK, ANTs and Slicer apply as it is.

    Args:
        path: .nii or .nii.gz.
        field: RAS mm, on the fixed grid, pointing into the moving image. ITK cannot load a sheared grid.

    Raises:
        InputError: another suffix, or the place cannot be written.
    """
    ndim = field.frame.ndim
    shape = (*field.frame.shape, *(1,) * (4 - ndim), ndim)
    image = nifti_of(np.broadcast_to(np.float32(0), shape), field.frame)  # its header; the values follow
    image.header.set_intent("vector", (), "")
    signs = _flip(ndim).astype(np.float32)
    write_nifti(path, image, (values * sign for values, sign in zip(field.components(), signs, strict=True)))


def read_field(path: str | os.PathLike, what: str = "transform") -> PhysicalField:
    """Read a displacement field.

    Args:
        path: .nii, .nii.gz, .mha, .mhd or .nrrd.
        what: its role in words; it opens the sentence of a fault.

    Raises:
        InputError: missing, damaged, no displacement field, NaN or infinite values, or a singular affine.
    """
    raw = load_raw(path, what)
    vectors = _vectors(raw, what)
    ndim = vectors.shape[-1]
    if not np.isfinite(vectors).all():
        raise InputError(f"{what} {raw.path} has NaN or infinite displacements; compute it again")
    axes = [*range(ndim), 3]
    affine = raw.affine[np.ix_(axes, axes)]
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    if not np.isfinite(affine).all() or not _regular(affine[:-1, :-1] / np.where(spacing > 0, spacing, 1)):
        raise InputError(f"{what} {raw.path} has a singular affine or no voxel size; repair its header")
    signs = 1.0 if raw.intent == INTENT_DISPLACEMENT else _flip(ndim)
    ddf_mm = np.moveaxis(vectors * signs, -1, 0)
    return PhysicalField(Frame(vectors.shape[:-1], affine), np.array(ddf_mm, dtype=np.float32, order="C"))


def _vectors(raw: RawFile, what: str) -> np.ndarray:
    """Return the displacements as (*spatial, D), D = 2 or 3."""
    values = raw.values
    if suffix_of(raw.path) in ITK_SUFFIXES:
        if raw.components not in (2, 3) or values.ndim != raw.components + 1 or values.dtype.kind != "f":
            raise InputError(f"{what} {raw.path} is no displacement field (not one vector a voxel); give a transform")
        return values
    shown = "x".join(map(str, values.shape))
    shape = values.shape
    if values.dtype.kind not in "iuf" or len(shape) != 5 or shape[3] != 1 or shape[4] not in (2, 3):
        raise InputError(
            f"{what} {raw.path} is no displacement field (shape {shown} instead of 5-D, X x Y x Z x 1 x 3); give a "
            "field that ITK, ANTs or this tool wrote"
        )
    if raw.intent not in (INTENT_VECTOR, INTENT_DISPLACEMENT):
        raise InputError(
            f"{what} {raw.path} has intent code {raw.intent} instead of 1007 (vector), so the meaning of its values is "
            "unknown; convert it to an ITK displacement field"
        )
    if shape[4] == 2 and shape[2] != 1:
        raise InputError(f"{what} {raw.path} has 2 components on a 3-D grid ({shown}); give a field of 3 components")
    return values[:, :, 0, 0] if shape[4] == 2 else values[:, :, :, 0]


def write_affine(path: str | os.PathLike, world: np.ndarray) -> None:
    """Write a world matrix as an ITK text transform (AffineTransform_double_3_3, centre 0, every digit kept).

    Args:
        path: .tfm or .txt.
        world: (D+1, D+1), fixed RAS mm -> moving RAS mm, D = 2 or 3.

    Raises:
        InputError: another suffix, or the place cannot be written.
        ValueError: not a homogeneous matrix.
    """
    world = np.asarray(world, dtype=np.float64)
    ndim = world.shape[0] - 1
    if world.shape not in ((3, 3), (4, 4)) or not np.array_equal(world[-1], [0] * ndim + [1]):
        raise ValueError(f"a world matrix is 3x3 or 4x4 with last row 0 ... 0 1, got {world}")
    if suffix_of(path) not in (".tfm", ".txt"):
        raise InputError(f"cannot write {path}: affines are written as ITK text; give a name that ends in .tfm")
    matrix = _mirror(world)
    numbers = [*matrix[:-1, :-1].ravel(), *matrix[:-1, -1]]
    text = (
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: AffineTransform_double_{ndim}_{ndim}\n"
        f"Parameters: {' '.join(repr(float(number)) for number in numbers)}\n"
        f"FixedParameters: {' '.join(['0'] * ndim)}\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii", newline="\n")


def read_affine(path: str | os.PathLike, what: str = "transform") -> np.ndarray:
    """Read a linear transform.

    Args:
        path: .tfm or .txt (ITK text) or .mat (ANTs).
        what: its role in words; it opens the sentence of a fault.

    Returns:
        (D+1, D+1) world matrix, fixed RAS mm -> moving RAS mm.

    Raises:
        InputError: missing, damaged, a kind of transform that is not read here, or singular.
    """
    path = existing_file(path, what)
    parts = _parse_mat(path, what) if suffix_of(path) == ".mat" else _parse_text(path, what)
    matrix = np.eye(parts[0].shape[0])
    for part in parts:  # a composite applies its last transform first
        if part.shape != matrix.shape:
            raise InputError(f"{what} {path} mixes 2-D and 3-D transforms; save each in a file of its own")
        matrix = matrix @ part
    if not np.isfinite(matrix).all() or not _regular(matrix[:-1, :-1]):
        raise InputError(f"{what} {path} has a singular or infinite matrix; compute it again")
    return _mirror(matrix)


def read_transform(
    path: str | os.PathLike, what: str = "transform", ndim: int | None = None
) -> PhysicalField | np.ndarray:
    """Read a displacement field or a linear transform, told apart by the suffix.

    Args:
        path: see the table of this module.
        what: its role in words; it opens the sentence of a fault.
        ndim: dimensions D that are needed, 2 or 3; None takes what there is.

    Returns:
        A field, or a (D+1, D+1) world matrix fixed RAS mm -> moving RAS mm.

    Raises:
        InputError: missing, damaged, of another dimension, or a format that is not read here.
    """
    path = existing_file(path, what)
    suffix = suffix_of(path)
    if suffix in FIELD_SUFFIXES:
        return _of_dimension(read_field(path, what), path, what, ndim)
    if suffix in (".tfm", ".txt", ".mat"):
        return _of_dimension(read_affine(path, what), path, what, ndim)
    remedy = "give .nii.gz for a displacement field, .tfm, .txt or .mat for an affine"
    if suffix in (".h5", ".hdf5"):
        remedy = "take the composite apart (ANTs: CompositeTransformUtil --disassemble) and give its parts"
    raise InputError(f"{what} {path} has a format that is not read here; {remedy}")


def _of_dimension(
    step: PhysicalField | np.ndarray, path: Path, what: str, ndim: int | None
) -> PhysicalField | np.ndarray:
    found = step.frame.ndim if isinstance(step, PhysicalField) else step.shape[0] - 1
    if ndim in (None, found):
        return step
    raise InputError(f"{what} {path} is {found}-D and the images are {ndim}-D; give a {ndim}-D transform")


def _flip(ndim: int) -> np.ndarray:
    return np.array([-1.0, -1.0, 1.0][:ndim])


def _mirror(matrix: np.ndarray) -> np.ndarray:
    """Turn a matrix between RAS and LPS, either way: F A F."""
    signs = np.append(_flip(matrix.shape[0] - 1), 1.0)
    return signs[:, None] * matrix * signs + 0.0  # + 0.0: no "-0.0" in a file


def _regular(matrix: np.ndarray) -> bool:
    return abs(np.linalg.det(matrix)) > _SINGULAR


def _parse_mat(path: Path, what: str) -> list[np.ndarray]:
    try:
        content = loadmat(path)
    except _NO_MAT as error:
        raise InputError(
            f"{what} {path} is not a matrix file of ANTs; give its 0GenericAffine.mat (FSL's: convert it with "
            "c3d_affine_tool)"
        ) from error
    names = [name for name in content if "_" in name.strip("_")]
    if len(names) != 1 or "fixed" not in content:
        raise InputError(f"{what} {path} holds no ITK transform; give ...0GenericAffine.mat of ANTs")
    parameters, fixed = np.ravel(content[names[0]]), np.ravel(content["fixed"])
    return [_linear(names[0], parameters, fixed, path, what)]


def _parse_text(path: Path, what: str) -> list[np.ndarray]:
    """Return the LPS matrices of an ITK text file, in the order of the file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
        pairs = [line.split(":", 1) for line in lines if line and not line.startswith("#")]
        if not lines[0].startswith("#Insight Transform File") or any(len(pair) != 2 for pair in pairs):
            raise ValueError
        entries = [(key.strip(), value.strip()) for key, value in pairs]
        kinds = [value for key, value in entries if key == "Transform"]
        numbers = {
            key: [np.array(value.split(), dtype=np.float64) for found, value in entries if found == key]
            for key in ("Parameters", "FixedParameters")
        }
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{what} {path} is not an ITK text transform or is damaged; give a .tfm or .txt file"
        ) from error
    composite = bool(kinds) and kinds[0].startswith("CompositeTransform")
    kinds = kinds[1:] if composite else kinds
    lengths = {len(kinds), len(numbers["Parameters"]), len(numbers["FixedParameters"])}
    if not kinds or len(lengths) > 1 or (len(kinds) > 1 and not composite):
        raise InputError(f"{what} {path} does not hold one whole ITK transform; export it again")
    return [_linear(*parts, path, what) for parts in zip(kinds, *numbers.values(), strict=True)]


def _linear(kind: str, parameters: np.ndarray, fixed: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Return the LPS matrix of y = M (x - c) + t + c, the form of all linear transforms of ITK."""
    kind = " ".join(kind.split())
    name, _, dims = kind.partition("_")
    ndim = 2 if dims.endswith("2_2") else 3
    reader = _KINDS.get((name, ndim))
    if reader is None or not dims.endswith(f"{ndim}_{ndim}"):
        raise InputError(f"{what} {path} is a {kind}, which is not read here; save it as AffineTransform")
    count, matrix_of = reader
    center = fixed[:ndim] if name != "TranslationTransform" else np.zeros(ndim)
    if parameters.size != count or center.size != ndim:
        raise InputError(f"{what} {path} has {parameters.size} parameters where a {kind} has {count}; export it again")
    linear = matrix_of(parameters, fixed)
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = linear
    affine[:-1, -1] = parameters[-ndim:] + center - linear @ center
    return affine


def _euler(parameters: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    zyx = fixed.size > 3 and fixed[3] != 0
    x, y, z = parameters[:3]
    order, angles = ("ZYX", (z, y, x)) if zyx else ("ZXY", (z, x, y))
    return Rotation.from_euler(order, angles).as_matrix()


def _versor(parameters: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    vector = parameters[:3]
    return Rotation.from_quat([*vector, np.sqrt(max(1 - vector @ vector, 0.0))]).as_matrix()


def _turn(parameters: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(parameters[0]), np.sin(parameters[0])
    return np.array([[cos, -sin], [sin, cos]])


# (name, dimension) -> number of parameters, the function of (parameters, fixed parameters) that gives the matrix M
_KINDS = {
    **{
        (name, ndim): (ndim * ndim + ndim, lambda p, _, n=ndim: p[: n * n].reshape(n, n))
        for name in ("AffineTransform", "MatrixOffsetTransformBase")
        for ndim in (2, 3)
    },
    **{("TranslationTransform", ndim): (ndim, lambda p, _, n=ndim: np.eye(n)) for ndim in (2, 3)},
    ("Euler3DTransform", 3): (6, _euler),
    ("VersorRigid3DTransform", 3): (6, _versor),
    ("Euler2DTransform", 2): (3, _turn),
}
