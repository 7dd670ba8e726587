import csv
import json

import numpy as np
import pytest
from image_case import refused

from shared_components.geometry import Frame
from shared_components.images import sha256_of
from shared_components.points import Points, check_points_inside, read_points, write_points

POINTS = np.array([[1.25, -2.5, 3.0], [-40.1, 17.0, 1e-7], [0.1 + 0.2, 99.0, -12.0]])
LPS = POINTS * [-1, -1, 1]
AFFINE = np.array([[0.0, -2.0, 0.0, 60.0], [1.5, 0.0, 0.0, 10.0], [0.0, 0.0, 3.0, -20.0], [0, 0, 0, 1]])
FCSV = """# Markups fiducial file version = 4.{version}
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,1.25,-2.5,3.0,0,0,0,1,1,1,0,carina,,
vtkMRMLMarkupsFiducialNode_1,-40.1,17,1e-7,0,0,0,1,1,1,0,"apex, left",,
"""


def text_file(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
@pytest.mark.parametrize("names", [["carina", "apex, left", 'the "third"'], None])
def test_every_digit_and_name_survives(tmp_path, suffix, names):
    path = tmp_path / f"points{suffix}"
    write_points(path, POINTS, names)
    again = read_points(path)
    assert np.array_equal(again.points_mm, POINTS) and again.path == path
    expected = names or (["", "", ""] if suffix == ".csv" else ["F-1", "F-2", "F-3"])
    assert again.names == expected
    write_points(tmp_path / f"twin{suffix}", again)
    twin = read_points(tmp_path / f"twin{suffix}")
    assert np.array_equal(twin.points_mm, POINTS) and twin.names == expected
    assert sha256_of(path) == sha256_of(tmp_path / f"twin{suffix}") or names is None


def test_what_the_files_say_of_themselves(tmp_path):
    """Read without our reader: csv in RAS, Slicer's files in LPS."""
    write_points(tmp_path / "a.csv", POINTS)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[:2] == ["# space: RAS", "x_mm,y_mm,z_mm"] and lines[2] == "1.25,-2.5,3.0"
    write_points(tmp_path / "a.fcsv", POINTS)
    lines = (tmp_path / "a.fcsv").read_text().splitlines()
    assert lines[1] == "# CoordinateSystem = LPS"
    row = next(csv.DictReader([lines[2].removeprefix("# columns = "), lines[3]]))
    assert [float(row[axis]) for axis in "xyz"] == LPS[0].tolist() and row["label"] == "F-1" and row["vis"] == "1"
    write_points(tmp_path / "a.mrk.json", POINTS)
    markup = json.loads((tmp_path / "a.mrk.json").read_text())["markups"][0]
    assert markup["coordinateSystem"] == "LPS" and markup["type"] == "Fiducial"
    assert [point["position"] for point in markup["controlPoints"]] == LPS.tolist()


def test_two_dimensions(tmp_path):
    write_points(tmp_path / "a.csv", POINTS[:, :2])
    assert np.array_equal(read_points(tmp_path / "a.csv", ndim=2).points_mm, POINTS[:, :2])
    path = text_file(tmp_path, "b.csv", "# space: LPS\n1,2\n3,4\n")
    assert read_points(path, ndim=2).points_mm.tolist() == [[-1, -2], [-3, -4]]
    refused(lambda: read_points(tmp_path / "a.csv"), "a.csv", "x_mm,y_mm,z_mm")
    write_points(tmp_path / "c.csv", POINTS)
    refused(lambda: read_points(tmp_path / "c.csv", ndim=2), "c.csv")
    refused(lambda: write_points(tmp_path / "a.fcsv", POINTS[:, :2]), "a.fcsv", ".csv")


# ---- csv of others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "space", "expected"),
    [
        ("1,2,3\n4,5,6\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("\ufeff1, 2, 3\r\n\r\n4, 5, 6\r\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("1 2 3\n4 5  6\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("1;2;3\n4;5;6\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("1\t2\t3\n4\t5\t6\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("# space: LPS\n1,2,3\n4,5,6\n", None, [[-1, -2, 3], [-4, -5, 6]]),
        ("#space:lps\n1,2,3\n4,5,6\n", "RAS", [[1, 2, 3], [4, 5, 6]]),
        ("1,2,3\n4,5,6\n", "lps", [[-1, -2, 3], [-4, -5, 6]]),
        ("z_mm,name,x_mm,y_mm\n3,a,1,2\n6,b,4,5\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("X,Y,Z\n1,2,3\n4,5,6\n", None, [[1, 2, 3], [4, 5, 6]]),
        ("x,y,z,t,label\n1,2,3,0,1\n4,5,6,0,2\n", None, [[-1, -2, 3], [-4, -5, 6]]),  # of ANTs
        ("x,y,z,t,label\n1,2,3,0,1\n4,5,6,0,2\n", "RAS", [[1, 2, 3], [4, 5, 6]]),
        ("1,2,3,nose\n4,5,6,chin\n", None, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_csv_of_others(tmp_path, text, space, expected):
    assert read_points(text_file(tmp_path, "a.csv", text), space=space).points_mm.tolist() == expected


def test_names_are_found(tmp_path):
    text = "label,x_mm,y_mm,z_mm\nnose,1,2,3\nchin,4,5,6\n"
    assert read_points(text_file(tmp_path, "a.csv", text)).names == ["nose", "chin"]
    assert read_points(text_file(tmp_path, "b.csv", "1,2,3,nose\n4,5,6\n")).names == ["nose", ""]


def test_voxel_indices(tmp_path):
    frame = Frame((30, 40, 50), AFFINE)
    path = text_file(tmp_path, "a.csv", "1,2,3\n")
    expected = [[-2 * 2 + 60, 1.5 * 1 + 10, 3 * 3 - 20]]
    assert read_points(path, space="vox", frame=frame).points_mm.tolist() == expected
    path = text_file(tmp_path, "b.csv", "# space: VOX\n1,2,3\n")
    assert read_points(path, frame=frame).points_mm.tolist() == expected
    refused(lambda: read_points(path), "b.csv", "voxels")


# ---- Slicer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "lps"), [("0", False), ("RAS", False), ("1", True), ("LPS", True)])
def test_fcsv_of_all_versions(tmp_path, system, lps):
    found = read_points(text_file(tmp_path, "a.fcsv", FCSV.format(version=6, system=system)))
    np.testing.assert_array_equal(found.points_mm, (LPS if lps else POINTS)[:2])
    assert found.names == ["carina", "apex, left"]


def test_markups_of_slicer(tmp_path):
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "RAS",
        "controlPoints": [
            {"label": "a", "position": [1.0, 2.0, 3.0], "positionStatus": "defined"},
            {"label": "b", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"},
            {"label": "c", "position": [4.0, 5.0, 6.0]},
        ],
    }
    path = text_file(tmp_path, "a.mrk.json", json.dumps({"markups": [markup]}))
    found = read_points(path)
    assert found.points_mm.tolist() == [[1, 2, 3], [4, 5, 6]] and found.names == ["a", "c"]
    del markup["coordinateSystem"]
    path = text_file(tmp_path, "b.json", json.dumps({"markups": [markup]}))
    assert read_points(path).points_mm.tolist() == [[-1, -2, 3], [-4, -5, 6]]


# ---- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.csv", "x_mm,y_mm,z_mm\n", "no points"),
        ("a.csv", "# nothing\n", "no points"),
        ("a.csv", "1,2\n3,4\n", "fewer than 3"),
        ("a.csv", "1,2,3\n4,5\n", "fewer than 3"),
        ("a.csv", "1,2,3,4,5,6\n", "6 columns"),
        ("a.csv", "1,2,3\n4,five,6\n", "five"),
        ("a.csv", "1,2,3\n4,nan,6\n", "point 2"),
        ("a.csv", "a,b,c\n1,2,3\n", "x_mm,y_mm,z_mm"),
        ("a.csv", "# space: MNI\n1,2,3\n", "MNI"),
        ("a.fcsv", FCSV.format(version=6, system="IJK"), "IJK"),
        ("a.fcsv", FCSV.format(version=6, system="RAS").replace("3.0", "x"), "cannot be understood"),
        ("a.fcsv", "# CoordinateSystem = RAS\n", "no points"),
        ("a.mrk.json", "{", "cannot be understood"),
        ("a.mrk.json", "[1, 2]", "cannot be understood"),
        ("a.mrk.json", '{"markups": []}', "0 markups"),
        ("a.mrk.json", '{"markups": [{"controlPoints": []}]}', "no points"),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "cannot be understood"),
        ("a.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "IJK"),
        ("a.vtk", "1,2,3\n", ".fcsv"),
    ],
)
def test_bad_files(tmp_path, name, text, fault):
    path = text_file(tmp_path, name, text)
    refused(lambda: read_points(path, "fixed points"), "fixed points", path, fault)


def test_other_bad_input(tmp_path):
    refused(lambda: read_points(tmp_path / "none.csv"), "none.csv", "does not exist")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    refused(lambda: read_points(tmp_path / "a.csv"), "a.csv")
    path = text_file(tmp_path, "b.csv", "1,2,3\n")
    refused(lambda: read_points(path, space="MNI"), "b.csv", "MNI")
    refused(lambda: write_points(tmp_path / "a.txt", POINTS), "a.txt", ".mrk.json")
    refused(lambda: write_points(path / "x.csv", POINTS), "x.csv", "writable")
    with pytest.raises(ValueError, match="one name each"):
        write_points(tmp_path / "c.csv", POINTS, ["a"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_points_inside():
    frame = Frame((30, 40, 50), AFFINE)
    inside = frame.to_mm(np.array([[0, 0, 0], [29, 39, 49], [12.0, 3.0, 7.0], [-0.5, 39.5, 49.5]]))
    check_points_inside(inside, frame, "good.csv")
    outside = np.vstack([inside, frame.to_mm(np.array([[-0.6, 0, 0], [0, 0, 60]]))])
    refused(
        lambda: check_points_inside(outside, frame, "p.csv", "moving points"),
        "moving points p.csv",
        "2 of 6",
        "point 5",
    )
    refused(lambda: check_points_inside(inside * [-1, -1, 1], frame, "p.csv"), "p.csv", "# space: LPS")
    voxels = np.array([[1.0, 2.0, 3.0], [25.0, 35.0, 45.0]])
    refused(lambda: check_points_inside(voxels, frame, "p.csv"), "p.csv", "# space: VOX")


def test_points_keep_their_names_by_default(tmp_path):
    write_points(tmp_path / "a.csv", Points(POINTS, ["a", "b", "c"]))
    assert read_points(tmp_path / "a.csv").names == ["a", "b", "c"]
    write_points(tmp_path / "a.csv", Points(POINTS))
    assert read_points(tmp_path / "a.csv").names == ["", "", ""]
