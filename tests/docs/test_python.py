"""The manual's page on Python: its programs run, and its plug-ins are found where an installed package has them."""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.conftest import Desk, new_desk
from tests.e2e.conftest import service as service  # noqa: PLC0414 - a fixture

from .pages import PAGES, ROOT, blocks

if TYPE_CHECKING:
    from tests.e2e.conftest import Service

pytestmark = pytest.mark.slow

PAGE: Final = PAGES["python"]


@pytest.fixture
def desk(tmp_path: Path, isolation: str, service: "Service") -> Iterator[Desk]:
    desk = new_desk(tmp_path, isolation, service)
    yield desk
    desk.clear()


def install(site: Path, project: Mapping[str, object], entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Leave what an installer leaves of a package beside its modules."""
    info = site / f"{str(project['name']).replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    with (info / "entry_points.txt").open("w") as file:
        for group, points in entry_points.items():
            file.writelines([f"[{group}]\n", *(f"{name} = {where}\n" for name, where in points.items()), "\n"])


def test_the_programs_run_and_the_plug_ins_are_found(desk: Desk, service: "Service", tmp_path: Path) -> None:
    site = tmp_path / "site"
    (project,) = (tomllib.loads(block.text)["project"] for block in blocks(PAGE, "toml") if block.file)
    install(site, project, project["entry-points"])
    nowhere = {group: {"bad": "nowhere:thing"} for group in project["entry-points"]}
    install(site, {"name": "bad-tools", "version": "0.1"}, nowhere)
    programs = []
    for block in blocks(PAGE, "python"):
        if block.file is None:
            programs.append(block.text)
        else:
            (site / block.file).write_text(block.text)
    plugged = {"PYTHONPATH": f"{site}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}

    listed = desk.sweep("agents", "list", environment=plugged).out
    assert re.search(r"touch +- +host +night_tools:Touch, of night-tools 1.0\.", listed)
    assert "nowhere:thing" in listed, "which nobody has imported"
    agents = ("--agent", "oracle", "--agent", "touch")
    desk.sweep("run", "bugfix-mini", *agents, "--limit", "1", "--name", "example", environment=plugged)
    (exported) = desk.sweep("export", "example", "--to", "scores", environment=plugged).out.splitlines()
    assert sorted(exported) == ["billing-month-end oracle 1.0", "billing-month-end touch 0.0"]

    assert desk.refused("export", "example", "--to", "bad", environment=plugged) == (
        "sweep: the plug-in bad (nowhere:thing, of bad-tools 0.1) is broken: ModuleNotFoundError: No module named "
        "'nowhere'. Fix it, or leave it out."
    )
    misspelt = desk.refused("export", "example", "--to", "score", environment=plugged)
    assert misspelt == "sweep: --to score: there is no such form. Did you mean scores?"
    assert "notifier 1 (page): told." in desk.sweep("notify", "page:told", environment=plugged).out
    assert (desk.folder / "told").read_text() == "sweep: a test\n"
    assert "the plug-in bad (nowhere:thing, of bad-tools 0.1) is broken" in (
        desk.sweep("notify", "bad:there", environment=plugged, status=1).out
    )
    broken = desk.refused("run", "bugfix-mini", "--agent", "bad", environment=plugged)
    assert broken.startswith("sweep: agent bad: there is no module 'nowhere'")

    said = [
        desk.spawn([sys.executable, "-c", program], {**service.environment, **plugged}).end() for program in programs
    ]
    assert [each.status for each in said] == [0] * len(programs), "\n".join(map(str, said))
    read, ran = said
    assert "example finished" in read.out
    assert "billing-month-end oracle 1 scored 1.0" in read.out
    assert ran.out == "finished {'oracle': 1.0, 'nop': 0.0}\n"
    assert not ran.err
