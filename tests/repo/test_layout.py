"""The tests lie as the code lies: tests/<package>/<folder>/test_<stem>.py, or a line here."""

from pathlib import Path

import pytest

PACKAGES = ("data", "kernels", "losses", "models", "train")
# Modules without a test file of their own: the one that covers them.
COVERED = {
    "data/augment/sampling": "augment/test_degrade",
    "data/augment/shading": "augment/test_degrade",
    "data/augment/symmetry": "augment/test_augment",
    "data/errors": "formats/test_address",
    "data/geometry": "test_volume",
    "data/loader/batch": "loader/test_loader",
    "data/sampler/crop": "sampler/test_place_sampler",
    "data/sampler/randomness": "sampler/test_place_sampler",
    "data/synthetic/cells": "synthetic/test_render",
    "data/synthetic/config": "synthetic/test_render",
    "data/synthetic/hashing": "synthetic/test_render",
    "data/synthetic/outlines": "synthetic/test_particles",
    "data/synthetic/tissue": "synthetic/test_render",
    "data/synthetic/volume": "formats/test_address",
    "data/writer/block_cost": "writer/test_tiling",
    "data/writer/resume": "writer/test_blockwise",
    "kernels/bench_cases": "test_bench",
    "kernels/checks": "test_entropy",
    "kernels/library": "test_build",
    "train/commands/judge": "test_cli",
    "train/commands/learn": "test_catalogue",
    "train/commands/make": "test_synth",
    "train/commands/segment": "recipes/test_segment",
    "train/commands/start": "test_catalogue",
    "train/commands/use": "test_cli",
    "train/dense/audit": "dense/test_evaluate",
    "train/dense/codes": "dense/test_evaluate",
    "train/dense/loss": "recipes/test_dense_ssl",
    "train/dense/networks": "recipes/test_dense_ssl",
    "train/dense/position": "dense/test_proof",
    "train/dense/predict": "predict/test_volume",
    "train/dense/proof_report": "dense/test_evaluate",
    "train/dense/report": "recipes/test_dense_ssl",
    "train/dense/run": "features/test_patches",
    "train/dense/texture": "dense/test_recluster",
    "train/dense/views": "recipes/test_dense_ssl",
    "train/engine/errors": "engine/test_run_folder",
    "train/engine/folders": "predict/test_images",
    "train/engine/progress": "recipes/test_segment",
    "train/engine/rehearsal": "measure/test_training",
    "train/engine/run_config": "test_catalogue",
    "train/engine/states": "recipes/test_recipes",
    "train/features/frozen": "judge/test_patches",
    "train/features/open": "judge/test_patches",
    "train/features/pooling": "judge/test_probe",
    "train/features/slab": "features/test_patches",
    "train/judge/scores": "dense/test_evaluate",
    "train/judge/truth": "dense/test_evaluate",
    "train/mae/predict": "predict/test_volume",
    "train/mae/report": "recipes/test_mae",
    "train/mae/run": "features/test_patches",
    "train/predict/block_job": "predict/test_crew",
    "train/predict/dask_workers": "predict/test_crew",
    "train/predict/plan": "predict/test_volume",
    "train/predict/processes": "predict/test_crew",
    "train/commands/restore": "recipes/test_restore",
    "train/restore/data": "recipes/test_restore",
    "train/restore/loss": "recipes/test_restore",
    "train/restore/networks": "recipes/test_restore",
    "train/restore/report": "recipes/test_restore",
    "train/restore/run": "restore/test_predict",
    "train/restore/validation": "recipes/test_restore",
    "train/segment/data": "recipes/test_segment",
    "train/segment/report": "segment/test_validation",
}
# Tests of more than one module, or of what is no module.
WIDER = {
    "kernels/test_cuda": "the CUDA operators, on a GPU",
    "train/engine/test_kill": "tools/bench/train/kill.py",
    "train/engine/test_two_hosts": "engine/launch.py over two network namespaces",
    "train/recipes/test_recipes": "what every recipe promises",
}


def modules(repository: Path, package: str) -> set[str]:
    (source,) = (repository / "packages" / f"em-{package}" / "src").glob("em_*")
    paths = (path.relative_to(source) for path in source.rglob("*.py"))
    return {str(path.with_suffix("")) for path in paths if path.name != "__init__.py"}


def own_test(module: str) -> str:
    folder, _, stem = module.rpartition("/")
    return f"{folder}/test_{stem}".lstrip("/")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_test_and_every_test_its_module(repository, package):
    there = modules(repository, package)
    home = repository / "tests" / package
    for module in there:
        listed = COVERED.get(f"{package}/{module}")
        own = home / f"{own_test(module)}.py"
        assert own.exists() or listed, f"{package}/{module} has no test, nor a line in COVERED"
        assert not (own.exists() and listed), f"{package}/{module} has a test: take it off the list"
        assert own.exists() or (home / f"{listed}.py").exists(), f"there is no {package}/{listed}"
    expected = {own_test(module) for module in there}
    for path in home.rglob("test_*.py"):
        name = str(path.relative_to(home).with_suffix(""))
        assert name in expected or f"{package}/{name}" in WIDER, f"{path} tests no module"


def test_the_lists_name_what_is_there(repository):
    every = {f"{package}/{m}" for package in PACKAGES for m in modules(repository, package)}
    assert not set(COVERED) - every
    assert all((repository / "tests" / f"{name}.py").exists() for name in WIDER)
