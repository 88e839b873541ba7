"""The walls of the house: who may import whom. Read from the source, so that imports inside functions count too."""

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1] / "orchestrator"
#: From the bottom up. A module is on the floor of the longest name that it begins with; it imports from there or below.
CORE: Final = (
    {"core.errors", "core.printable", "core.protocol"},
    {"core.stages", "core.records"},
    {"core.events"},
    {"core.ledger"},
    {"core"},
)
RUNNER: Final = (
    *CORE,
    {"common"},
    {"endpoint", "agentkit", "rundir", "testing"},
    {"engine", "view"},
    {"commands", "results"},
    {"cli", "api", "__main__"},
)
#: Test equipment that is plugged into the service.
EQUIPMENT: Final = {"testing.chaos", "testing.strict_compat"}
SERVICE: Final = (
    {"service.errors"},
    {"service.records", "service.store", "service.content", "service.diagnostics", "service.state_folder"},
    {"service.sandbox"},
    {"service.environments"},
    {"service.devboxes", "service.scoring"},
    {"service.definitions"},
    {"service.runs"},
    {"service.http"},
    {"service.assembly"},
    {"service.server"} | EQUIPMENT,
)
#: What the service may use of the runner's.
SHARED: Final = {"core.errors", "core.printable", "core.protocol", "common"}
#: Module names that may occur twice, for the modules do the same for two packages.
SHARED_MODULE_NAMES: Final = {"__init__", "__main__", "errors", "states"}
#: Packages that name their modules after those of which they declare the commands or the routes.
DECLARATIONS: Final = ("orchestrator.cli.", "orchestrator.service.http.")
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


def _room(module: str, rooms: Iterable[str]) -> str | None:
    """The longest of these names that the module begins with, below ours."""
    name = module.removeprefix("orchestrator.")
    return max((room for room in rooms if f"{name}.".startswith(f"{room}.")), key=len, default=None)


def _floor(module: str, house: Sequence[set[str]]) -> int | None:
    room = _room(module, chain(*house))
    return next((number for number, floor in enumerate(house) if room in floor), None)


def _edges() -> list[tuple[str, str]]:
    return [(module, name) for module, names in OURS.items() for name in sorted(names)]


def _part(module: str) -> str:
    """The building or floor that a module is in: the second word of its name."""
    return module.split(".")[1] if "." in module else module


def test_every_module_is_on_a_floor() -> None:
    houses = (*RUNNER, *SERVICE)
    packages = {"orchestrator", "orchestrator.core", "orchestrator.service"}
    assert [module for module in FILES if module not in packages and _floor(module, houses) is None] == []


@pytest.mark.parametrize("house", [RUNNER, SERVICE], ids=["runner", "service"])
def test_imports_point_down_only(house: Sequence[set[str]]) -> None:
    assert [
        f"{module} imports {name}"
        for module, name in _edges()
        if (here := _floor(module, house)) is not None and (there := _floor(name, house)) is not None and there > here
    ] == []


def test_the_service_imports_of_the_runner_only_what_is_for_everybody() -> None:
    assert {
        f"{module} imports {_part(name)}"
        for module, name in _edges()
        if _part(module) == "service" and _part(name) not in {"service", "orchestrator"} and not _room(name, SHARED)
    } == set()


def test_only_the_commands_import_the_service() -> None:
    users = {_part(module) for module, name in _edges() if _part(name) == "service" and not _room(module, EQUIPMENT)}
    assert users <= {"service", "commands", "cli"}


def test_pictures_and_engine_do_not_know_each_other() -> None:
    assert [edge for edge in _edges() if {_part(edge[0]), _part(edge[1])} == {"view", "engine"}] == []


def test_the_client_is_imported_where_its_protocol_lives_and_nowhere_else() -> None:
    users = {module for module, names in IMPORTS.items() if any(n.startswith("runloop_api_client") for n in names)}
    assert [
        user
        for user in users
        if not user.startswith(("orchestrator.endpoint.", "orchestrator.service.sandbox.runloop"))
    ] == []


@pytest.mark.parametrize("module", sorted(module for module in FILES if _part(module) == "core"))
def test_the_centre_is_pure(module: str) -> None:
    """Standard library, orjson and pydantic only, and nothing of it that reads a clock, a disk or a network."""
    outside = {name.split(".")[0] for name in IMPORTS[module]} & OUTSIDE
    if module != "orchestrator.core.config":
        outside |= {name.split(".")[0] for name in IMPORTS[module]} & {"pathlib", "pydantic"}
    assert outside == set()


def _building(module: str) -> str:
    return "service" if _part(module) == "service" else "runner"


def _twice(names: Iterable[tuple[str, str]]) -> set[str]:
    """Names that occur more than once in a building."""
    return {name for (_, name), count in Counter(names).items() if count > 1}


def test_no_class_name_occurs_twice_in_a_building() -> None:
    nodes = ((module, node) for module, path in FILES.items() for node in ast.walk(ast.parse(path.read_bytes())))
    names = ((_building(module), node.name) for module, node in nodes if isinstance(node, ast.ClassDef))
    assert _twice(names) == set()


def test_no_module_name_occurs_twice_in_a_building() -> None:
    names = ((_building(module), FILES[module].stem) for module in FILES if not module.startswith(DECLARATIONS))
    assert _twice(names) - SHARED_MODULE_NAMES == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    """A package file counts as imported by its parts, as it is when they are; the root imports nothing by itself."""
    lazy = OURS | {"orchestrator": set()}
    TopologicalSorter({module: names - {module} for module, names in lazy.items()}).prepare()
