"""Which hosts package managers get packages from: those that this machine's settings name, and the tools' own.

The tools know their own best, and are asked in the box that installs, with what it has of the settings.
"""

from typing import Final

from orchestrator.service.environments.installs.settings import Settings, hosts_named
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.provider import HOME, Box, Command

_ASK_TIME: Final = 60
#: npm tells by itself. pip's own index is in its code, which Python brings along for new environments where it has no
#: pip itself; uv has the same.
_NPM: Final = "npm config get registry"
_PIP: Final = """\
import ensurepip, glob, importlib.util, os, sys, sysconfig
if importlib.util.find_spec("pip") is None:
    bundled = os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")
    for folder in (sysconfig.get_config_var("WHEEL_PKG_DIR"), bundled, "/usr/share/python-wheels"):
        sys.path += glob.glob(f"{folder}/pip-*.whl")
from pip._internal.models.index import PyPI
print(PyPI.url)
print(f"//{PyPI.file_storage_domain}/")
"""


async def index_hosts(box: Box, settings: Settings) -> tuple[str, ...]:
    """Rules for all hosts that installs may get packages from. Raises BoxDied."""
    questions: list[tuple[str, ...]] = [("sh", "-c", _NPM)]
    if not settings.has_index:
        questions.append(("python3", "-I", "-c", _PIP))
    said = [await _answer(box, argv, settings) for argv in questions]
    return tuple(dict.fromkeys((*settings.hosts, *(host for words in said for host in hosts_named(words)))))


async def _answer(box: Box, argv: tuple[str, ...], settings: Settings) -> str:
    """What a program of the machine says, nothing where there is none."""
    command = Command(argv=argv, cwd=HOME, environment=settings.variables, is_plain=True)
    finished = await run(box, command, timeout=_ASK_TIME)
    return finished.stdout.decode(errors="replace") if finished.status == 0 else ""
