"""The plan of the house: which module may import which, and where private names may stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import modules of a lower floor, and those that stand left of it on its own.
FLOORS = [
    [
        "equations",
        "search_space",
        "population",
        "scale_factor",
        "differential_evolution",
        "run_beside",
        "steady_state",
        "running_best",
    ],
    [
        "layers",
        "random_state",
        "plain_values",
        "packing",
        "snapshot",
        "member_state",
        "rank_exchange",
        "held_state",
        "param_groups",
        "lr_schedule",
        "update_rules",
        "checkpoint_layout",
        "layer_control",
    ],
    [
        "averaging",
        "held_signals",
        "replay",
        "other_callbacks",
        "quiet",
        "batch_counts",
        "step_counts",
        "trainer_seam",
        "epoch_start",
        "first_batch",
        "progress",
        "placement",
        "compatibility",
        "pure_steps",
        "workers",
        "compiled_steps",
        "direct_steps",
        "direct_validation",
        "compile_choice",
        "evaluators",
        "evaluators.base",
        "evaluators.probe",
        "evaluators.sequential",
        "stacked_steps",
        "evaluator_choice",
        "evaluators.vectorised",
        "evaluators.distributed",
        "rank_sharing",
        "generation",
        "last_validation",
        "history",
        "best_state",
        "probing",
        "members",
        "chained",
    ],
    ["searches", "callback"],
    [""],  # the package itself
]
ORDER = [name for floor in FLOORS for name in floor]
NUMPY_FLOOR = FLOORS[0]
FORBIDDEN = {
    "deopt_lightning": {"hydra", "omegaconf", "torchmetrics", "recsys_models"},
    "recsys_models": {"deopt_lightning"},
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name inside the package -> file."""
    base = ROOT / package
    names = {}
    for path in sorted(base.rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def imports(path: Path) -> list[str]:
    """Full names of everything that a file imports, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def inner(name: str) -> str | None:
    """The module of our package that an imported name belongs to."""
    if name != "deopt_lightning" and not name.startswith("deopt_lightning."):
        return None
    inside = name.removeprefix("deopt_lightning").removeprefix(".")
    known = modules("deopt_lightning")
    while inside not in known:
        inside = inside.rpartition(".")[0]
    return inside


def only_for_types(path: Path) -> set[str]:
    """Names imported under `if TYPE_CHECKING`."""
    blocks = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    return {
        f"{child.module}.{alias.name}"
        for block in blocks
        for child in ast.walk(block)
        if isinstance(child, ast.ImportFrom)
        for alias in child.names
    }


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(modules("deopt_lightning"))


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_down(name: str) -> None:
    path = modules("deopt_lightning")[name]
    for imported in set(imports(path)) - only_for_types(path):
        target = inner(imported)
        if target is not None and target != name:
            assert ORDER.index(target) < ORDER.index(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", NUMPY_FLOOR)
def test_search_core_needs_numpy_only(name: str) -> None:
    outside = {i.split(".")[0] for i in imports(modules("deopt_lightning")[name])}
    assert not outside & {"torch", "lightning", "scipy"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_apart(package: str) -> None:
    for path in modules(package).values():
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & FORBIDDEN[package], path


def test_only_what_builds_from_the_configuration_imports_hydra() -> None:
    users = {
        name
        for name, path in modules("recsys_models").items()
        if {i.split(".")[0] for i in imports(path)} & {"hydra", "omegaconf"}
    }
    assert users <= {"train", "training", "experiment", "compare"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_private_names_of_others_stand_in_the_seam_only(package: str) -> None:
    for name, path in modules(package).items():
        if name == "trainer_seam":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
            if private and not node.attr.startswith("__"):
                owner = node.value
                own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
                assert own, f"{path}:{node.lineno} uses {node.attr}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_files_stay_small(package: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules(package).values()
        if (lines := len(path.read_text().splitlines())) > 350
    }
    assert not long
