"""The walls of the house: who may import whom. Read from the source, so that imports inside functions count too."""

import ast
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1] / "orchestrator"
#: From the bottom up; a module belongs to the longest name that it begins with, and imports from its floor or below.
FLOORS: Final = (
    {"orchestrator", "errors"},
    {"stages", "model"},
    {"events"},
    {"ledger"},
    {"policy", "plan", "config", "reopen"},
    {"runloop", "agentkit", "journal", "folder", "runs", "salvage", "embedded", "logs", "awake", "testing"},
    {"engine", "view"},
    {"app"},
    {"cli", "__main__"},
)
CENTRE: Final = frozenset(chain(*FLOORS[:5]))
OUTSIDE: Final = {"anyio", "asyncio", "io", "os", "random", "shutil", "socket", "subprocess", "threading", "time"}


def _imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands; `from a import b` as `a.b` if that is one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


FILES: Final = {_module(path): path for path in ROOT.rglob("*.py") if ROOT / "benchmarks" not in path.parents}
IMPORTS: Final = {module: _imports(path) for module, path in FILES.items()}
OURS: Final = {module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}


def _part(module: str) -> str:
    """The room that a module is in: the second word of its name."""
    return module.split(".")[1] if "." in module else module


def _floor(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if _part(module) in floor)


def _edges() -> list[tuple[str, str]]:
    return [(module, name) for module, names in OURS.items() for name in sorted(names)]


def test_every_module_has_a_floor_or_is_the_service() -> None:
    known = {"service", *chain(*FLOORS)}
    assert [module for module in FILES if _part(module) not in known] == []


def test_imports_point_down_only() -> None:
    assert [
        f"{module} imports {name}"
        for module, name in _edges()
        if "service" not in {_part(module), _part(name)} and _floor(name) > _floor(module)
    ] == []


def test_the_service_imports_nothing_of_ours_but_errors_and_logs() -> None:
    allowed = {"service", "errors", "logs", "orchestrator"}
    assert [
        f"{module} imports {name}"
        for module, name in _edges()
        if _part(module) == "service" and _part(name) not in allowed
    ] == []


def test_only_the_composition_root_and_the_commands_know_the_service() -> None:
    assert {_part(module) for module, name in _edges() if _part(name) == "service"} <= {"service", "app", "cli"}


def test_pictures_and_engine_do_not_know_each_other() -> None:
    assert [edge for edge in _edges() if {_part(edge[0]), _part(edge[1])} == {"view", "engine"}] == []


def test_the_client_is_imported_where_its_protocol_lives_and_nowhere_else() -> None:
    users = {module for module, names in IMPORTS.items() if any(n.startswith("runloop_api_client") for n in names)}
    assert [
        user
        for user in users
        if not user.startswith(("orchestrator.runloop.", "orchestrator.service.devboxes.runloop"))
    ] == []


@pytest.mark.parametrize("module", sorted(module for module in FILES if _part(module) in CENTRE))
def test_the_centre_is_pure(module: str) -> None:
    """Standard library, orjson and pydantic only, and nothing of it that reads a clock, a disk or a network."""
    outside = {name.split(".")[0] for name in IMPORTS[module]} & OUTSIDE
    if _part(module) != "config":
        outside |= {name.split(".")[0] for name in IMPORTS[module]} & {"pathlib", "pydantic"}
    assert outside == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    """A package file counts as imported by its parts, as it is when they are."""
    TopologicalSorter({module: names - {module} for module, names in OURS.items()}).prepare()
