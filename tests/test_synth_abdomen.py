"""Patients of the abdomen: is the anatomy one, are the labels the picture's, and do patients differ as people do?"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from shared_components.errors import InputError
from shared_components.geometry import Frame, orientation_codes
from shared_components.images import read_image, read_labels
from shared_components.synth import Patient, abdomen_patient, write_abdomen
from shared_components.synth.abdomen import LABELS, Tissue, make_layout
from shared_components.synth.abdomen.body import Canvas, clear_strangers
from shared_components.synth.abdomen.render import render_ct, render_mr
from shared_components.synth.abdomen.shapes import Texture, curve, ellipsoid, tube_level
from shared_components.synth.abdomen.tissues import APPEARANCE, ORGAN_TISSUES

SIZE, SPACING = (48, 36, 36), 8.0
LIMITS_ML = {1: (700, 2400), 2: (50, 500), 3: (50, 420), 4: (50, 420), 5: (55, 360), 6: (55, 360)}


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [abdomen_patient("ct" if seed % 2 else "mr", seed, SIZE, SPACING) for seed in range(5)]


def milliliters(labels: np.ndarray, spacing: float = SPACING) -> dict[int, float]:
    return {label: float((labels == label).sum()) * spacing**3 / 1000 for label in LABELS}


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the six organs."""
    pairs = [(first == label, second == label) for label in LABELS]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


# ------------------------------------------------------------------------------------------------------- parts


def test_levels_are_distances_where_they_can_be_told():
    points = np.array([[0, 0, 0], [10, 0, 0], [14, 0, 0], [0, 9, 0]], np.float32)
    np.testing.assert_allclose(ellipsoid(points, (0, 0, 0), (10, 10, 10)), [10, 0, -4, 1], atol=1e-5)
    line = curve([[0, 0, -30], [0, 0, 30]], [5, 5], step=0.5)
    np.testing.assert_allclose(tube_level(points, line)[:1], [5], atol=0.26)  # half a step of the line
    assert tube_level(points, line)[2] < -100  # far outside: no more than that it is not near


def test_texture_belongs_to_the_body_and_not_to_the_grid():
    texture = Texture(np.random.default_rng(0), 10.0)
    points = np.random.default_rng(1).uniform(-150, 150, (4000, 3)).astype(np.float32)
    values = texture(points)
    np.testing.assert_array_equal(texture(points[::2]), values[::2])
    assert 0.6 < values.std() < 1.4 and abs(values.mean()) < 0.15
    assert np.corrcoef(values, texture(points + np.float32(1.5)))[0, 1] > 0.8


def test_every_tissue_has_an_appearance():
    assert set(APPEARANCE) == set(Tissue) and set(ORGAN_TISSUES) == set(LABELS)


def test_what_is_painted_over_an_organ_loses_its_label():
    canvas = Canvas(np.zeros((3, 3), np.float32), np.random.default_rng(0))
    canvas.paint(np.arange(3), Tissue.MUSCLE, 3)
    canvas.paint(np.array([1]), Tissue.BONE)
    clear_strangers(canvas)
    assert canvas.label.tolist() == [3, 0, 3]


# ---------------------------------------------------------------------------------------------------- anatomy


def test_same_seed_same_patient_and_the_global_generators_rest():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (abdomen_patient("mr", 7, (24, 18, 18), 16.0) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_modalities_of_a_seed_show_one_anatomy(patients):
    other = abdomen_patient("mr", 1, SIZE, SPACING)
    np.testing.assert_array_equal(other.labels, patients[1].labels)
    body = patients[1].tissue != Tissue.TABLE
    np.testing.assert_array_equal(other.tissue[body], patients[1].tissue[body])
    assert abs(np.corrcoef(other.image.ravel(), patients[1].image.ravel())[0, 1]) < 0.95


def test_frame_is_centred_ras(patients):
    frame = patients[0].frame
    assert orientation_codes(frame.affine) == "RAS" and frame.shape == SIZE
    np.testing.assert_allclose(frame.center_mm, 0, atol=1e-9)
    np.testing.assert_allclose(frame.spacing, SPACING)


def test_six_organs_of_plausible_size(patients):
    for patient in patients:
        assert patient.labels.dtype == np.uint8 and patient.image.dtype == np.float32
        assert set(np.unique(patient.labels)) == {0, *LABELS}
        for label, volume in milliliters(patient.labels).items():
            low, high = LIMITS_ML[label]
            assert low < volume < high, (LABELS[label], volume)


def test_organs_lie_on_their_side(patients):
    for patient in patients:
        middle = {k: patient.frame.to_mm(np.argwhere(patient.labels == k)).mean(0) for k in LABELS}
        for label in (1, 4, 6):  # x points to the patient's right
            assert middle[label][0] > 15, LABELS[label]
        for label in (2, 3, 5):
            assert middle[label][0] < -15, LABELS[label]
        assert middle[1][2] > middle[4][2] and middle[2][2] > middle[3][2]  # liver and spleen above the psoas
        spine = patient.frame.to_mm(np.argwhere(patient.tissue == Tissue.DISC)).mean(0)
        assert spine[1] < 0 and abs(spine[0]) < 40


def test_labels_hold_their_own_tissue_only(patients):
    for patient, (label, parts) in itertools.product(patients, ORGAN_TISSUES.items()):
        assert set(np.unique(patient.tissue[patient.labels == label])) <= {int(part) for part in parts}


def test_spacing_changes_the_sampling_not_the_patient(patients):
    finer = abdomen_patient("ct", 1, (64, 48, 48), 6.0)
    coarse = milliliters(patients[1].labels)
    for label, volume in milliliters(finer.labels, 6.0).items():
        assert volume == pytest.approx(coarse[label], rel=0.12), LABELS[label]


def test_patients_differ_as_after_an_affine_alignment(patients):
    values = [dice(a.labels, b.labels) for a, b in itertools.combinations(patients, 2)]
    assert 0.3 < np.mean(values) < 0.5
    assert max(values) < 0.7


def test_variation_scales_bend_and_pose():
    still = [abdomen_patient("ct", seed, SIZE, SPACING, variation=0.0).labels for seed in (0, 1)]
    moved = [abdomen_patient("ct", seed, SIZE, SPACING).labels for seed in (0, 1)]
    assert dice(*still) > dice(*moved) + 0.05
    assert dice(*still) < 0.9  # organs vary in shape, not in pose alone


# ----------------------------------------------------------------------------------------------------- pictures


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """A slab of 8 voxels for every tissue, and their texture."""
    tissue = np.repeat(np.arange(len(Tissue), dtype=np.uint8), 8)[:, None, None] * np.ones((1, 16, 16), np.uint8)
    return tissue, np.random.default_rng(0).standard_normal(tissue.shape).astype(np.float32)


def means(image: np.ndarray) -> dict[Tissue, float]:
    return {kind: float(image[8 * kind + 3 : 8 * kind + 5].mean()) for kind in Tissue}


@pytest.mark.parametrize("seed", range(3))
def test_ct_shows_hounsfield_units_of_its_phase(seed):
    seen = {p: render_ct(*blocks(), 3.0, np.random.default_rng(seed), p) for p in ("native", "arterial", "portal")}
    for image in seen.values():
        assert image.min() >= -1024 and image.max() <= 3071 and image.dtype == np.float32
        assert -130 < means(image)[Tissue.FAT] < -70 and means(image)[Tissue.BONE] > 350
    native, arterial, portal = (means(image) for image in seen.values())
    assert max(native[kind] for kind in (Tissue.ARTERY, Tissue.LIVER, Tissue.CORTEX)) < 90
    assert arterial[Tissue.ARTERY] > 200 > portal[Tissue.ARTERY] > 100
    assert arterial[Tissue.CORTEX] > arterial[Tissue.MEDULLA] + 40  # before the medulla takes up
    assert portal[Tissue.HEPATIC_VEIN] > portal[Tissue.LIVER] + 15
    assert arterial[Tissue.HEPATIC_VEIN] < arterial[Tissue.LIVER]


@pytest.mark.parametrize("seed", range(3))
def test_mr_weightings_turn_the_contrast_round(seed):
    def seen(weighting: str) -> dict[Tissue, float]:
        args = (np.random.default_rng(seed), torch.Generator().manual_seed(seed), weighting)
        image = render_mr(*blocks(), 3.0, *args)
        assert image.min() >= 0 and image.dtype == np.float32
        return means(image)

    t1, t2 = seen("t1"), seen("t2")
    assert t1[Tissue.LIVER] > t1[Tissue.SPLEEN] and t2[Tissue.LIVER] < t2[Tissue.SPLEEN]
    assert t1[Tissue.FAT] > 1.5 * t1[Tissue.MUSCLE] and t2[Tissue.FLUID] > 2 * t1[Tissue.FLUID]
    assert 0 < t1[Tissue.AIR] < 80  # the Rayleigh floor of the noise


def test_air_fat_and_liver_of_a_patient():
    patient = abdomen_patient("ct", 1, SIZE, SPACING, contrast="portal")
    inner = {k: patient.image[binary_erosion(patient.tissue == k)].mean() for k in (Tissue.AIR, Tissue.LIVER)}
    assert inner[Tissue.AIR] == pytest.approx(-1000, abs=15)
    assert 70 < inner[Tissue.LIVER] < 150


def test_unknown_modality_is_refused():
    with pytest.raises(ValueError, match="modality must be one of ct, mr"):
        abdomen_patient("pet", 0, SIZE, SPACING)


# -------------------------------------------------------------------------------------------------- real shapes


def balls(numbers: tuple[int, ...] = (3, 2, 88, 89)) -> tuple[np.ndarray, Frame]:
    """Organs as balls of 24 mm radius where kidneys and psoas muscles may lie, on a frame of 4 mm."""
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -118, -118, -118
    frame = Frame((60, 40, 60), affine)
    places = {3: (-70, -40, 7), 2: (70, -40, 7), 88: (-45, -35, -60), 89: (45, -35, -60)}
    points = frame.to_mm(np.indices(frame.shape).reshape(3, -1).T)
    labels = np.zeros(frame.shape, np.int32)
    for number in numbers:
        labels[(np.linalg.norm(points - places[number], axis=1) < 24).reshape(frame.shape)] = number
    return labels, frame


def test_given_shapes_replace_the_drawn_ones():
    patient = abdomen_patient("ct", 3, SIZE, SPACING, make_layout(*balls()))
    drawn = abdomen_patient("ct", 3, SIZE, SPACING)
    ball = 4 / 3 * np.pi * 24**3 / 1000
    volume = milliliters(patient.labels)
    for label in (5, 6):
        assert 0.3 * ball < volume[label] < 1.6 * ball
        points = patient.frame.to_mm(np.argwhere(patient.labels == label))
        assert np.ptp(points[:, 2]) < 80 < np.ptp(drawn.frame.to_mm(np.argwhere(drawn.labels == label))[:, 2])
    for label in (3, 4):
        assert volume[label] < 1.6 * ball


def test_a_layout_without_an_organ_is_refused():
    with pytest.raises(InputError, match="has no label 88"):
        make_layout(*balls((3, 2, 89)))


# ------------------------------------------------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("abdomen") / "new"
    return Path(write_abdomen(folder, count=4, seed=3, spacing_mm=16.0, size=(24, 18, 18)))


def test_datalist_has_disjoint_sections_of_both_modalities(written):
    sections = json.loads(written.read_text())
    assert {name: len(items) for name, items in sections.items()} == {"training": 6, "validation": 2, "test": 2}
    items = [item for section in sections.values() for item in section]
    assert len({item["subject"] for item in items}) == len({item["image"] for item in items}) == 10
    for name, items in sections.items():
        assert {item["modality"] for item in items} == {"ct", "mr"}, name
        for item in items:
            image, labels = read_image(written.parent / item["image"]), read_labels(written.parent / item["label"])
            assert image.frame.same_grid(labels.frame)
            assert (image.array.min() < -900) == (item["modality"] == "ct")


def test_no_two_images_show_one_patient(written):
    items = [item for section in json.loads(written.read_text()).values() for item in section]
    arrays = [read_labels(written.parent / item["label"]).array.numpy() for item in items]
    assert all((a != b).any() for a, b in itertools.combinations(arrays, 2))


def test_a_second_run_goes_on_and_other_settings_are_refused(written):
    options = {"count": 4, "seed": 3, "spacing_mm": 16.0, "size": (24, 18, 18)}
    kept, lost = written.parent / "ct_01_ct.nii.gz", written.parent / "mr_02_mr.nii.gz"
    stamp, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    write_abdomen(written.parent, **options)
    assert kept.stat().st_mtime_ns == stamp and lost.read_bytes() == content
    with pytest.raises(InputError, match="other settings"):
        write_abdomen(written.parent, **{**options, "seed": 4})
    with pytest.raises(InputError, match="at least 4 patients"):
        write_abdomen(written.parent, count=3)
