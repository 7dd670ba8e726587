"""Classical registration tools, one short adapter each: two files in, one displacement field out.

    python peers.py NAME FIXED MOVING OUT.nii.gz [THREADS]

Runs in a process of its own and imports nothing of this project, so that it can live in another environment
(``pip install antspyx picsl-greedy itk-elastix SimpleITK``). OUT is what ITK reads: on the fixed grid, vectors in LPS
mm, fixed -> moving. The last line printed is JSON: the tool's version and the seconds between images in memory and the
transform in memory or, for tools that only write files, on disk; composing and writing the field is not counted.
Settings are each tool's own defaults or the ones its manual recommends for brains; they are in the code below.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

NEEDS = {"ants": "antspyx", "greedy": "picsl-greedy", "elastix": "itk-elastix", "demons": "SimpleITK"}
NAMES = ("ants_affine", "ants_syn", "greedy_affine", "greedy_ncc", "elastix_bspline", "demons")


def ants(kind: str, fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """ANTsPy: an affine map, or SyN with an affine start; both with its defaults (mutual information)."""
    import ants

    images = ants.image_read(fixed), ants.image_read(moving)
    begin = time.perf_counter()
    kinds = {"affine": "Affine", "syn": "SyN"}
    found = ants.registration(*images, type_of_transform=kinds[kind], outprefix=f"{folder}/a", random_seed=1)
    seconds = time.perf_counter() - begin
    field = ants.apply_transforms(*images, transformlist=found["fwdtransforms"], compose=f"{folder}/all_")
    os.replace(field, out)
    return ants.__version__, seconds


def greedy(kind: str, fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """Greedy: affine (12 degrees of freedom), then local NCC of radius 2, 100/50/10 iterations over three levels."""
    from importlib.metadata import version

    from picsl_greedy import Greedy3D

    tool, threads = Greedy3D(), os.environ.get("OMP_NUM_THREADS", "2")
    common = f"-threads {threads} -m NCC 2x2x2 -i {fixed} {moving} -n 100x50x10"
    begin = time.perf_counter()
    tool.execute(f"-a -dof 12 -ia-image-centers {common} -o {folder}/affine.mat")
    chain = f"{folder}/affine.mat"
    if kind == "ncc":
        tool.execute(f"{common} -it {folder}/affine.mat -o {folder}/warp.nii.gz")
        chain = f"{folder}/warp.nii.gz {chain}"
    seconds = time.perf_counter() - begin
    tool.execute(f"-threads {threads} -rf {fixed} -r {chain} -rc {out}")
    return version("picsl-greedy"), seconds


def elastix(kind: str, fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """Elastix: its default affine and B-spline parameter maps (mutual information, adaptive stochastic descent)."""
    from importlib.metadata import version

    import itk

    release = version("itk-elastix")  # ITK alone imports as well
    images = itk.imread(fixed, itk.F), itk.imread(moving, itk.F)
    maps = itk.ParameterObject.New()
    for name in ("affine", kind):
        chosen = maps.GetDefaultParameterMap(name)
        chosen["AutomaticTransformInitialization"] = ["true" if name == "affine" else "false"]
        maps.AddParameterMap(chosen)
    begin = time.perf_counter()
    _, found = itk.elastix_registration_method(*images, parameter_object=maps, log_to_console=False)
    seconds = time.perf_counter() - begin
    itk.imwrite(itk.transformix_deformation_field(images[1], found), out)
    return release, seconds


def demons(kind: str, fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """SimpleITK: affine by mutual information, then fast symmetric forces demons on a pyramid of three levels."""
    import SimpleITK as sitk

    target, source = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (fixed, moving))
    begin = time.perf_counter()
    affine = _sitk_affine(sitk, target, source)
    brought = sitk.HistogramMatching(sitk.Resample(source, target, affine), target, 128, 10, True)
    field = None
    for factor, iterations in ((4, 60), (2, 40), (1, 20)):
        small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(x, 0.5 * factor), [factor] * 3) for x in (target, brought)]
        step = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        step.SetNumberOfIterations(iterations)
        step.SetStandardDeviations(1.5)
        start = None if field is None else sitk.Resample(field, small[0])
        field = step.Execute(*small) if start is None else step.Execute(*small, start)
    seconds = time.perf_counter() - begin
    chain = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))])
    grid = target.GetSize(), target.GetOrigin(), target.GetSpacing(), target.GetDirection()
    sitk.WriteImage(sitk.TransformToDisplacementField(chain, sitk.sitkVectorFloat32, *grid), out)
    return sitk.Version_VersionString(), seconds


def _sitk_affine(sitk: object, fixed: object, moving: object) -> object:
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start, inPlace=True)
    return method.Execute(fixed, moving)


def main(name: str, fixed: str, moving: str, out: str) -> None:
    """Run one adapter and print its facts."""
    tool, _, kind = name.partition("_")
    adapter = {"ants": ants, "greedy": greedy, "elastix": elastix, "demons": demons}[tool]
    with TemporaryDirectory(dir=Path(out).parent) as folder:
        try:
            version, seconds = adapter(kind, fixed, moving, out, folder)
        except ImportError as error:
            sys.exit(f"{name} is skipped: {error}; pip install {NEEDS[tool]}")
    print(json.dumps({"tool": NEEDS[tool], "version": version, "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main(*sys.argv[1:5])
