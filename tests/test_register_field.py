"""scripts/register.py on request: fields without folds, and refined ones."""

from __future__ import annotations

import json

import pytest
import torch
from register_case import command, place, script, undo  # noqa: F401
from script_tools import DONE

from shared_components.itk_io import read_field
from shared_components.metrics import folded_cells
from shared_components.refine import METHODS


def test_folds_are_taken_out_if_that_is_asked_for(script, place):
    """A network of wild weights folds; with --diffeomorphic neither field does, and the numbers tell what it took."""
    weights = torch.load(place / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(1)
    last = [name for name in weights if name.startswith("dense") and name.endswith("last.weight")]
    wild = {name: weights[name] + 3 * torch.randn(weights[name].shape, generator=generator) for name in last}
    torch.save(weights | wild, place / "wild.pt")
    for name, more in (("folded", []), ("unfolded", ["--diffeomorphic"])):
        assert script.main(command(place, name, f"--weights={place / 'wild.pt'}", *more)) in DONE
        fields = [read_field(place / name / file).voxel_ddf() for file in ("ddf.nii.gz", "inverse_ddf.nii.gz")]
        assert not any(folded_cells(field).any() for field in fields) if more else folded_cells(fields[0]).any()
        metrics = json.loads((place / name / "metrics.json").read_text())
        assert ("diffeomorphic" in metrics) == bool(more)
    assert metrics["field"]["ndv_percent"] == 0 < metrics["diffeomorphic"]["network_grid"]["largest_change_mm"]


def test_refinement_is_switched_on(script, place):
    assert script.main(command(place, "plain")) in DONE
    assert script.main(command(place, "refined", "--refine_steps=3")) in DONE
    assert "refine" in json.loads((place / "refined" / "metrics.json").read_text())
    assert "refine" not in json.loads((place / "plain" / "metrics.json").read_text())


@pytest.mark.parametrize("method", ["vsvf", "bspline"])
def test_refinement_by_other_means(script, place, method):
    """The same words as the library's."""
    assert script.REFINE == METHODS
    assert script.main(command(place, method, f"--refine={method}", "--refine_steps=3")) in DONE
    numbers = json.loads((place / method / "metrics.json").read_text())["refine"]
    assert numbers["loss_after"] <= numbers["loss_before"]
    assert numbers["strict_folds_after"] <= (0 if method == "vsvf" else numbers["strict_folds_before"])


def test_a_method_of_refinement_alone_brings_its_own_number_of_steps(script, place):
    options = script.arguments(command(place, "velocity", "--refine=vsvf"))
    config = json.loads((script.find_bundle(options.bundle) / script.CONFIG).read_text())
    chosen = script.overrides(options, config)
    assert chosen["refine"] == "vsvf" and chosen["refine_steps"] == script.REFINE_STEPS > 0
    assert "refine" not in script.overrides(script.arguments(command(place, "velocity")), config)
