"""Who may import whom, and that no module is out of reach of the tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS

PACKAGE = "diffstride_hybrid"
BELOW = {
    "audit": {"model_tools", "layers", "backends", "common"},
    "config": {"training", "runs", "models", "model_tools", "layers", "spectral", "backends", "data", "common"},
    "training": {"runs", "models", "model_tools", "layers", "spectral", "backends", "data", "common"},
    "runs": {"model_tools", "layers", "spectral", "common"},
    "models": {"model_tools", "layers", "spectral", "backends", "common"},
    "model_tools": {"layers", "spectral", "backends", "common"},
    "layers": {"spectral", "backends", "common"},
    "spectral": {"backends"},
    "backends": set(),
    "data": {"common"},
    "common": set(),
}
"""What each room may import beside itself."""

MAY_IMPORT_REPORTS = "experiments.tables"
SHARED_BY_EXPERIMENTS = {"experiments", "experiments.devices", "experiments.spread"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for folder in (PACKAGE, "experiments") for path in (ROOT / folder).rglob("*.py")}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; for `from package import name` the module that has the name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield defining_module(node.module, alias.name)


def defining_module(module: str, name: str) -> str:
    """Follows a name through the `__init__.py` that hands it on."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    if module in MODULES and MODULES[module].name == "__init__.py":
        for node in ast.walk(tree_of(MODULES[module])):
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return defining_module(node.module, name)
    return module


def room_of(module: str) -> str | None:
    """The room of a module of the package, None for what is on its ground."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else None


COMMANDS = {name for name in MODULES if name.count(".") == 1 and not MODULES[name].name.startswith("__")}
COMMANDS |= {name for name in MODULES if name.startswith(PACKAGE) and name.endswith(".__main__")}
"""What users run: the files on the ground of the package, and `__main__.py` of a room that is a command too."""

ROOMS = sorted(name for name in MODULES.keys() - COMMANDS if room_of(name))


def test_every_folder_of_the_package_is_a_room():
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders == set(BELOW)


@pytest.mark.parametrize("module", ROOMS)
def test_a_room_imports_only_rooms_below_it(module: str):
    room = room_of(module)
    for imported in imports_of(MODULES[module]):
        if imported.split(".")[0] not in (PACKAGE, "experiments"):
            continue
        assert room_of(imported) in {room, *BELOW[room]}, f"{module} imports {imported}"


def test_no_two_modules_import_each_other():
    imports = {
        name: {other for other in imports_of(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    while leaves := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, f"an import circle among {sorted(imports)}"


def test_only_config_and_the_experiments_know_gin():
    knowing = {name for name, path in MODULES.items() if "gin" in {other.split(".")[0] for other in imports_of(path)}}
    assert {name for name in knowing if name.startswith(PACKAGE)} <= {
        name for name in ROOMS if room_of(name) == "config"
    }


def test_only_commands_and_experiments_know_flags():
    for module in ROOMS:
        assert not {"absl.flags", "absl.app"} & set(absl_imports(MODULES[module])), module


def absl_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("absl"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_flag_is_defined_when_a_module_is_imported():
    for name, path in MODULES.items():
        for node in tree_of(path).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert "flags.DEFINE" not in ast.unparse(node), name


def test_experiments_do_not_import_each_other():
    for name, path in MODULES.items():
        if not name.startswith("experiments.") or name in SHARED_BY_EXPERIMENTS:
            continue
        own = name.split(".")[1]
        for imported in imports_of(path):
            if not imported.startswith("experiments") or imported in SHARED_BY_EXPERIMENTS:
                continue
            other = imported.split(".")[1]
            of_studies = own in ("sweep", "tables", "figures", "audits") and other == "studies"
            report = name == MAY_IMPORT_REPORTS and imported.endswith(".report")
            assert other == own or of_studies or report, f"{name} imports {imported}"


def test_only_the_top_and_spectral_hand_names_on():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name not in (PACKAGE, f"{PACKAGE}.spectral", "experiments"):
            body = tree_of(path).body
            assert len(body) == 1, f"{name} has more than a docstring"


def test_no_module_is_longer_than_can_be_read_in_one_sitting():
    for name, path in MODULES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name
    for path in TESTS.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path


def test_some_test_reaches_every_module():
    """A module is reached if a test imports or runs it, or if a module that is reached imports it."""
    reached: set[str] = set()
    waiting: set[str] = set()
    for path in [*TESTS.rglob("test_*.py"), *(TESTS / "support").glob("*.py")]:
        waiting |= {module for module in imports_of(path) if module in MODULES}
        text = path.read_text(encoding="utf-8")
        commands = {name for name in MODULES if f'"{name}"' in text}
        waiting |= {f"{name}.__main__" if f"{name}.__main__" in MODULES else name for name in commands}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= {other for other in imports_of(MODULES[module]) if other in MODULES} - reached
    by_name = (f"{PACKAGE}.backends.on_", "experiments.studies.grids.")  # These are imported by their names.
    grids = {name for name in MODULES if name.startswith(by_name)}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert MODULES.keys() - reached - grids - packages - COMMANDS == set()


OF_TENSORFLOW = (
    *("backends.on_tensorflow", "backends.xla", "layers.fused_kernel", "spectral.tensorflow"),
    *("models.google_checkpoint", "model_tools.exporting", "model_tools.frozen", "common.distribution"),
)
"""What may import TensorFlow among the rooms that JAX and PyTorch share."""

SHARED_ROOMS = {"audit", "backends", "spectral", "layers", "models", "model_tools"}


@pytest.mark.parametrize("module", [name for name in ROOMS if room_of(name) in SHARED_ROOMS])
def test_only_modules_of_its_own_import_a_backend(module: str):
    imported = {name.split(".")[0] for name in imports_of(MODULES[module])}
    own = {"tensorflow": OF_TENSORFLOW, "jax": ("backends.on_jax",), "torch": ("backends.on_torch",)}
    for backend, modules in own.items():
        if not module.removeprefix(f"{PACKAGE}.").startswith(modules):
            assert backend not in imported


@pytest.mark.parametrize("module", ROOMS)
def test_no_module_asks_for_the_backend_more_than_once(module: str):
    assert MODULES[module].read_text(encoding="utf-8").count("current.NAME ==") <= 1
