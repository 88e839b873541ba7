"""Scoring in boxes of its own, in which nothing of the agent's runs.

Its secret: each scoring function has a new box, so that what one of them started, with the agent's modules in it, is
gone before the next begins; and what is ours (scripts, tests, test files) is mounted read-only from the host, so that
no code under test can change it. The score that tests wrote is read from the host when their box has ended.
"""

import io
import posixpath
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import anyio.to_thread

from orchestrator.service.definitions.scoring_plan import ScoringPlan, Tests
from orchestrator.service.definitions.self_extracting import export
from orchestrator.service.devboxes.remains import put, read
from orchestrator.service.devboxes.succession import Succession
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import Bind, BoxDied, Command
from orchestrator.service.scoring.rewards import JSON_FILE, MAX_REWARD_BYTES, TEXT_FILE
from orchestrator.service.scoring.scoring import BASH, EMPTIED, BrokenByTested, Program, mode_of, watch
from orchestrator.service.scoring.verdict import VERIFIER, Ended, judge_rewards

TESTS: Final = "/tests"
STDOUT: Final = f"{VERIFIER}/test-stdout.txt"
_SCRIPTS: Final = "/run/scorer"
#: Byte code that an agent left beside a module is not run in its place.
FRESH: Final = {"PYTHONPYCACHEPREFIX": "/tmp/.pycache"}  # noqa: S108 - the box's


def tests_program(tests: Tests) -> Program:
    """The program of a scenario whose scorer is its tests/: that file, run in the working directory as it is."""
    exports = "".join(f"{export(name, value)}\n" for name, value in tests.variables.items())
    return Program(
        argv=BASH,
        script=f"{exports}{TESTS}/{tests.program}\n",
        reads=tuple(f"{VERIFIER}/{name}" for name in (JSON_FILE, TEXT_FILE)),
        judge=judge_rewards,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A `Place` over what an agent left. `folder` is empty and on the host, for what scorers are given.

    `binds` are what the contract's scorers need, `variables` the names of those that the scenario asks for.
    """

    boxes: Succession
    plan: ScoringPlan
    folder: Path
    binds: Sequence[Bind]
    variables: Collection[str]
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def id(self) -> str:
        return self.boxes.agents.id

    def path(self, path: str) -> str:
        return path

    async def stop(self) -> None:
        await self.boxes.stop()

    async def run(self, program: Program, *, timeout: float) -> Ended:
        place = self.folder / str(next(self._numbers))
        try:
            given = await anyio.to_thread.run_sync(self._give, program, place)
        except OSError as error:
            raise BadRequest(f"its files could not be put in place: {error}") from error
        argv = (*program.argv, f"{_SCRIPTS}/script") if program.script is not None else tuple(program.argv)
        environment = {**EMPTIED, **FRESH, **program.environment}
        command = Command(argv=argv, cwd=self.boxes.working_directory, environment=environment)
        async with self.boxes.scoring_box((*self.binds, *given), self.variables) as box:
            try:
                ended = await watch(box, command, timeout=timeout)
            except BoxDied as error:
                await box.wait_dead()
                if box.is_broken_from_inside:
                    raise BrokenByTested(f"what was judged broke the box that judged it: {error.message}") from error
                raise
        return await anyio.to_thread.run_sync(partial(self._read, program, ended))

    def _give(self, program: Program, place: Path) -> Sequence[Bind]:
        """Lay out what a program is given, and put its test files in their places."""
        binds = []
        _folder(place)
        if program.script is not None:
            _folder(place / "scorer")
            _file(place / "scorer/script", program.script.encode(), 0o644)
            binds.append(Bind(source=place / "scorer", target=_SCRIPTS))
        if self.plan.tests is not None:
            _folder(place / "tests")
            _unpack(self.plan.tests.archive, place / "tests")
            binds.append(Bind(source=place / "tests", target=TESTS))
        for number, file in enumerate(program.files):
            contents = file.file_contents or ""
            target = posixpath.join(self.boxes.working_directory, file.file_path)
            target = put(self.boxes.files, target, contents.encode(), mode_of(contents))
            _file(place / f"file-{number}", contents.encode(), mode_of(contents))
            binds.append(Bind(source=place / f"file-{number}", target=target))
        return binds

    def _read(self, program: Program, ended: Ended) -> Ended:
        if not program.reads:
            return ended
        if read(self.boxes.files, STDOUT, 1) is None:
            put(self.boxes.files, STDOUT, ended.output.encode(), 0o644)
        return replace(
            ended, files={path: read(self.boxes.files, path, MAX_REWARD_BYTES + 1) for path in program.reads}
        )


def _folder(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o755)


def _file(place: Path, data: bytes, mode: int) -> None:
    place.write_bytes(data)
    place.chmod(mode)


def _unpack(archive: bytes, folder: Path) -> None:
    """Unpack what the catalog packed; folders are for everybody to enter, whatever our umask."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)  # noqa: S202 - of our own making, without a path that climbs
    for each in folder.rglob("*"):
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o755)
