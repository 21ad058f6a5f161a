"""The public names, written down: adding or removing one changes this file, and the changelog."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import memojax

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "AssetData",
    "AssetKind",
    "BaseWrapper",
    "BasicInferer",
    "Batched",
    "Batcher",
    "BrainId",
    "ClipAction",
    "ConstantGenerator",
    "DynamicInferer",
    "EpsilonInjector",
    "EpsilonInjectorWrapper",
    "Evaluation",
    "FixedBatchInferer",
    "HighQualityNoiseGenerator",
    "Inferer",
    "InfererBuilder",
    "InfererWrapper",
    "LowQualityNoiseGenerator",
    "MemoizingDynamicInferer",
    "ModelApi",
    "NoiseGenerator",
    "NormalizeObs",
    "OneShot",
    "PlanArtifact",
    "PolicyPool",
    "Predictor",
    "RecurrentInfo",
    "RecurrentTracker",
    "RecurrentTrackerWrapper",
    "Response",
    "Runtime",
    "ScaleAction",
    "ScratchPad",
    "ScratchPadView",
    "SelectObs",
    "ShardedInferer",
    "State",
    "StatefulInferer",
    "TensorSpec",
    "TypedModel",
    "errors",
    "evaluate",
    "forbid_compile",
    "load",
    "load_stablehlo",
    "ops",
    "pin_cores",
    "policies",
    "run",
    "to_jax",
    "to_stablehlo",
    "verify",
]
PATHS = [
    "memojax.backend",
    "memojax.cli.main:main",
    "memojax.display",
    "memojax.errors:MemojaxError",
    "memojax.evaluation:compare",
    "memojax.inferer:InfererBuilder",
    "memojax.model:load_model",
    "memojax.ops.register",
    "memojax.ops.registry:remove",
    "memojax.policies:bundled",
    "memojax.runtime:Runtime",
    "memojax.stablehlo:to_stablehlo",
    "memojax.verification:verify",
    "memojax.wrapper",
    "memojax.xla.flags:disable_loop_unrolling",
]
"""Import paths that stay: `module`, `module:name`, or an attribute path from a module."""


def test_the_public_names_match_the_list() -> None:
    assert sorted(memojax.__all__) == sorted(PUBLIC)
    assert len(set(memojax.__all__)) == len(memojax.__all__)
    for name in memojax.__all__:
        assert getattr(memojax, name) is not None


def test_a_name_that_moved_is_found_with_a_warning() -> None:
    from memojax.xla.flags import disable_loop_unrolling

    with pytest.warns(DeprecationWarning, match=r"import it from memojax\.xla\.flags"):
        assert memojax.disable_loop_unrolling is disable_loop_unrolling  # pyright: ignore[reportAttributeAccessIssue]


def test_submodules_do_not_leak() -> None:
    program = "import memojax, memojax.cli.main, memojax.backend; print(*dir(memojax))"
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in listed.split() if not name.startswith("__")] == sorted(PUBLIC)


def test_the_help_needs_no_jax() -> None:
    program = (
        "import sys, memojax.cli.main as command_line\n"
        "try: command_line.main(['--help'])\n"
        "except SystemExit: print(sorted({'jax', 'onnx', 'rich'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "evaluate" in shown
    assert shown.endswith("\n[]\n"), shown[-200:]


def test_rooms_are_attributes_before_their_import() -> None:
    program = "import memojax; print(memojax.kernels.available, hasattr(memojax, 'nothing_of_ours'))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.endswith(" False\n")


@pytest.mark.parametrize("path", PATHS)
def test_public_paths_stay(path: str) -> None:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, name = module.rpartition(".")
        found = importlib.import_module(parent)
    if name:
        assert hasattr(found, name)


def test_every_public_name_has_a_page() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: memojax\.(\S+)$", pages, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    modules = {name.partition(".")[0] for name in listed if "." in name}
    assert set(PUBLIC) <= {*listed, *modules}
