"""Collects the files of an attempt, before scoring brings hidden tests into its devbox.

These are the patch, the artifacts that the agent's file names, its trajectory in its own and in the common format, the
files in `/logs/agent`, and the devbox's log. The protocol has no way to attach files to a run, so they are kept in the
attempt's folder.

One script in the devbox packs all of it into pieces that are read one by one, so that a call takes no more memory than
a piece, whatever the agent left. Files that are too large, torn or strange are left out and listed in LEFT-OUT.txt;
nothing here fails a trial that can be scored.
"""

import gzip
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import IO, Final

import anyio
import orjson
import structlog

from orchestrator.agentkit.trajectory import convert
from orchestrator.core.errors import DevboxLost, WorldError
from orchestrator.core.printable import printable
from orchestrator.core.records import Flag, Settlement
from orchestrator.engine.artifacts import scripts
from orchestrator.engine.artifacts.unpack import Account, ArchiveLimits, Lines, clear, join, shown_before, unpack
from orchestrator.engine.context import AttemptState, Context, given
from orchestrator.engine.redact import Redactor
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.rundir.files import AGENT_LOG, persist

#: The share of the stage's time for packing in the devbox; the rest is for reading the pieces.
PACKING_SHARE: Final = 0.5
PATCH_FILE: Final = "patch.diff"
CHANGES: Final = "changes.txt"
#: The size of that list; the service has a bound of its own.
MAX_CHANGES_BYTES: Final = 8 << 20
CONVERTED: Final = "trajectory.json"
#: What crossed to a separate scoring, for `sweep rescore`. Its label in the result tells if that was all.
CROSSED: Final = "crossed.tar.gz"
ALL_CROSSED: Final = "crossed"
CROSSED_BESIDE_PATCH: Final = "crossed_beside_patch"
#: Files with notes on the collected files, by their label in the result.
NOTES: Final = {"left_out": "LEFT-OUT.txt", "renamed": "RENAMED.txt", "masked": "MASKED.txt"}
_PIECE_NAME: Final = re.compile(
    rf"(({'|'.join([*scripts.GROUPS, scripts.VERIFIER])})\.(near|far|cut)|{scripts.CROSSED})\.[a-z]{{3}}"
)
_PATCH_NAME: Final = re.compile(r"patch\.[a-z]{3}")
#: Files that should be unchanged: a masked byte in them is worth a flag.
_EXACT: Final = frozenset({PATCH_FILE, CROSSED, "artifacts"})
#: Seconds for packing where no deadline says less.
_LONGEST_S: Final = 3600.0


async def take_snapshot(state: AttemptState) -> None:
    """Record the devbox's files before the agent begins. Raises DevboxLost and nothing else."""
    workspace: DevboxWorkspace = given(state.workspace, "the workspace")
    try:
        ended = await workspace.tend("snapshot", scripts.snapshot(**_places(workspace)), timeout=scripts.PATCH_S)
    except DevboxLost:
        raise
    except WorldError as error:
        _warn(state, "snapshot.failed", error.message)
    else:
        if ended.exit_status != 0:
            _warn(state, "snapshot.failed", ended.stderr or f"status {ended.exit_status}")


async def collect(ctx: Context, state: AttemptState, settlement: Settlement | None) -> None:
    """Collect all files into the attempt's folder. Raises WorldError if a part is missing, after the others.

    With a `settlement` the scripts run where nothing of the agent's runs.
    """
    workspace: DevboxWorkspace = given(state.workspace, "the workspace")
    if settlement is not None:
        workspace.scratch = settlement.scratch
    collection = _Collection(ctx, state, workspace, settlement)
    missing: WorldError | None = None
    parts = (collection.clear, collection.patch, collection.changes, collection.files, collection.trajectory)
    for part in (*parts, collection.say, collection.log, collection.network):
        try:
            await part()
        except DevboxLost:
            raise
        except WorldError as error:
            missing = error
        except (OSError, ValueError) as error:  # also: larger than it can be
            missing = WorldError(f"the collected files could not be kept: {error}")
    if missing is not None:
        raise missing


async def collect_verifier_files(ctx: Context, state: AttemptState, settlement: Settlement) -> None:
    """Add the scorers' files to the attempt's folder. Raises WorldError if they cannot be read."""
    workspace: DevboxWorkspace = given(state.workspace, "the workspace")
    workspace.scratch = settlement.scratch
    collection = _Collection(ctx, state, workspace, settlement)
    await collection.verifier()
    await collection.say()


class _Collection:
    """The files of one attempt, part by part."""

    def __init__(
        self, ctx: Context, state: AttemptState, workspace: DevboxWorkspace, settlement: Settlement | None
    ) -> None:
        self._ctx = ctx
        self._state = state
        self._workspace = workspace
        self._settlement = settlement
        self._limits = ArchiveLimits()
        self._said = {label: Lines() for label in NOTES}

    async def clear(self) -> None:
        """Remove what an earlier process collected: all of it is collected again."""
        for name in (PATCH_FILE, CHANGES, CONVERTED, CROSSED, *NOTES.values(), *scripts.GROUPS, scripts.VERIFIER):
            await persist(partial(clear, self._state.folder / name))

    async def patch(self) -> None:
        found, workspace = self._settlement, self._workspace
        if found is None:
            script = scripts.patching(self._limits.file, **_places(workspace))
        else:
            script = scripts.settled_patching(
                self._limits.file,
                evidence=found.evidence,
                prepared=found.prepared,
                scratch=workspace.scratch,
                directory=workspace.working_directory,
            )
        printed = await self._tend("patch", script, scripts.PATCH_S)
        self._cut(f"{PATCH_FILE}: {line}" for line in printed.get("cut", ()))
        for line in printed.get("left", ()):
            self._said["left_out"].add(f"{PATCH_FILE}: {line}")
        if reasons := printed.get("no-patch"):
            self._state.flag(Flag.NO_PATCH)
            for reason in reasons:
                self._said["left_out"].add(f"{PATCH_FILE}: {reason}")
        elif pieces := sorted(set(filter(_PATCH_NAME.fullmatch, printed["piece"]))):
            async with self._archive("patch", pieces) as archive:
                await self._unpack("patch", PATCH_FILE, partial(self._join_patch, archive))
        else:
            self._state.flag(Flag.NO_PATCH)
            self._said["left_out"].add(f"{PATCH_FILE}: the devbox did not say that it made one")

    def _join_patch(self, archive: IO[bytes], target: Path, limits: ArchiveLimits, redactor: Redactor) -> Account:
        """Write the patch; a value that the scenario's own lines in it show is the scenario's. Raises OSError."""
        own = shown_before(archive, redactor)
        for name in sorted(own):
            self._said["masked"].add(f"{PATCH_FILE}: {name} is in the scenario's own files, and is not masked")
        return join(archive, target, limits, redactor.without(own))

    async def changes(self) -> None:
        """The list of changes outside the working directory."""
        if self._settlement is not None:
            changes = await self._workspace.read(f"{self._settlement.evidence}/{CHANGES}", at_most=MAX_CHANGES_BYTES)
            if changes:
                await self._state.keep("changes", CHANGES, changes)

    async def files(self) -> None:
        """The folders, packed together."""
        scenario = given(self._state.scenario, "the scenario").in_step(len(self._state.steps))
        outputs = self._state.arm.agent.outputs
        evidence = self._settlement.evidence if self._settlement else ""
        script = scripts.packing(
            outputs, scenario.artifacts, self._limits, **_places(self._workspace), evidence=evidence
        )
        await self._folders(scripts.GATHER, script, scripts.GROUPS)

    async def verifier(self) -> None:
        """The files that scorers left."""
        await persist(partial(clear, self._state.folder / scripts.VERIFIER))
        script = scripts.packing_verifier(self._limits, **_places(self._workspace))
        await self._folders(scripts.VERIFIER, script, [scripts.VERIFIER], again=f"-{self._state.scorings}")

    async def _folders(self, step: str, script: str, groups: Collection[str], *, again: str = "") -> None:
        """Pack folders in the devbox and unpack them here; `again` makes the step of each scoring another one."""
        printed = await self._tend(f"{step}{again}", script, _LONGEST_S)
        self._cut(printed.get("note", []))
        pieces = sorted(set(filter(_PIECE_NAME.fullmatch, printed["piece"])))
        for reason in printed.get("uncrossed", ()):
            self._said["left_out"].add(f"{CROSSED}: {reason}")
        if names := [name for name in pieces if name.startswith(f"{scripts.CROSSED}.")]:
            async with self._archive(step, names, scripts.MAX_CROSSED_BYTES) as archive:
                await self._unpack(self._crossed_label(), CROSSED, partial(_compress, archive))
        for group, kind in product(groups, ("near", "far", "cut")):
            if names := [name for name in pieces if name.startswith(f"{group}.{kind}.")]:
                async with self._archive(step, names) as archive:
                    await self._unpack(group, group, partial(unpack, archive))

    def _crossed_label(self) -> str:
        """Tell if what crossed is all that its scorers were given; a step that follows begins on the patch, too."""
        summary, scenario = self._state.whole, given(self._state.scenario, "the scenario")
        is_all = not summary.steps and (scenario.artifacts or summary.verifier_environments)
        return ALL_CROSSED if is_all else CROSSED_BESIDE_PATCH

    async def trajectory(self) -> None:
        """Convert the trajectory; one that cannot be read is flagged."""
        state, agent = self._state, self._state.arm.agent
        if agent.outputs.trajectory_format is None:
            return
        parts = [state.folder / AGENT_LOG]
        if agent.outputs.trajectory:
            found = filter(Path.is_file, (state.folder / "trajectory").rglob("*"))
            parts = sorted(found, key=lambda path: (path.stat().st_mtime_ns, path))
        reading = partial(
            convert,
            agent.outputs.trajectory_format,
            parts,
            agent=agent.name,
            version=agent.version,
            model=state.arm.config.model,
            session=f"{self._ctx.sweep}/{state.key}/{state.number}",
        )
        try:
            document = await anyio.to_thread.run_sync(lambda: orjson.dumps(reading(), option=orjson.OPT_INDENT_2))
        except Exception as error:  # noqa: BLE001 - what an agent wrote, and a reader of it, are no reason to fail a trial
            state.flag(Flag.TRAJECTORY_UNREAD)
            _warn(state, "trajectory.unread", str(error))
        else:
            await state.keep("trajectory_atif", CONVERTED, document)

    async def say(self) -> None:
        """Notes: files left out and why, files renamed, and secrets masked."""
        for label, lines in self._said.items():
            name = NOTES[label]
            if lines:
                known = await persist(partial(_lines, self._state.folder / name))
                new = [line for line in map(printable, lines) if line not in known]
                await self._state.keep(label, name, "".join(f"{line}\n" for line in [*known, *new]).encode())

    async def log(self) -> None:
        log = await self._ctx.endpoint.devbox_log(self._workspace.devbox.id)
        await self._state.keep("devbox_log", "devbox.log", log.encode(errors="replace"))

    async def network(self) -> None:
        if self._workspace.devbox.reached is None:  # an endpoint that does not count need not be asked
            return
        devbox = await self._ctx.endpoint.devbox(self._workspace.devbox.id)
        self._state.network = {"reached": devbox.reached, "refused": devbox.refused}

    async def _tend(self, step: str, script: str, at_most: float) -> dict[str, list[str]]:
        """Run a script of ours; return its lines by their first word. Raises WorldError if it did not end well."""
        left = anyio.current_effective_deadline() - anyio.current_time()
        ended = await self._workspace.tend(step, script, timeout=min(left * PACKING_SHARE, at_most))
        if ended.exit_status != 0:
            raise WorldError(f"{step}.sh in the devbox: {ended.stderr or f'status {ended.exit_status}'}")
        printed: dict[str, list[str]] = {"piece": []}
        for line in ended.stdout.split("\n"):  # a name may have what else counts as a line's end
            word, _, rest = line.partition(" ")
            printed.setdefault(word, []).append(rest)
        return printed

    @asynccontextmanager
    async def _archive(self, step: str, names: Iterable[str], room: int | None = None) -> AsyncIterator[IO[bytes]]:
        """Join the pieces of an archive. It still has secrets, so the file has no name."""
        with await persist(lambda: tempfile.TemporaryFile(dir=self._state.folder)) as file:
            # The script should not pack more, but it may.
            size, most = 0, (room or self._limits.room) + scripts.PIECE_BYTES
            for name in names:
                async with aclosing(self._workspace.pieces(f"{self._workspace.scratch}/{step}/{name}")) as pieces:
                    async for piece in pieces:
                        await persist(partial(_write_at, file, size, piece))
                        size += len(piece)
                        if size > most:
                            break
                if size > most:
                    break
            file.seek(0)
            yield file

    async def _unpack(
        self, label: str, name: str, unpacking: Callable[[Path, ArchiveLimits, Redactor], Account]
    ) -> None:
        target, redactor, scenario = self._state.folder / name, self._state.redactor, self._state.scenario

        def masked_unpacking() -> Account:
            if name not in _EXACT:
                return unpacking(target, self._limits, redactor)
            texts = (scenario.prompt, scenario.reference_output or "") if scenario else ()
            return unpacking(
                target, self._limits, redactor.for_files([text.encode(errors="replace") for text in texts])
            )

        account = await anyio.to_thread.run_sync(masked_unpacking)
        self._cut(f"{name}: {line}" for line in account.left_out)
        for line in account.renamed:
            self._said["renamed"].add(f"{name}: {line}")
        for path, masked in account.masked.items():
            for variable, times in sorted(masked.items()):
                self._said["masked"].add(f"{f'{name}/{path}'.rstrip('/')}: {variable}, {times} times masked")
        if account.masked and name in _EXACT:
            self._state.flag(Flag.SECRETS_MASKED)
        if target.exists():
            self._state.list_file(label, target)

    def _cut(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._state.flag(Flag.GATHER_TRUNCATED)
            self._said["left_out"].add(line)


def _compress(archive: IO[bytes], target: Path, _limits: ArchiveLimits, redactor: Redactor) -> Account:
    """Write what crossed; with a masked secret it would be something else, and is not kept. Raises OSError."""
    account, masked = Account(), Counter[str]()
    stream = redactor.stream(masked)
    with gzip.open(target, "wb", compresslevel=1) as file:
        while piece := archive.read(1 << 20):
            file.write(stream.feed(piece))
        file.write(stream.finish())
    if masked:
        target.unlink()
        account.left_out.add("a secret is in it")
    return account


def _write_at(file: IO[bytes], position: int, data: bytes) -> None:
    file.seek(position)
    file.write(data)
    file.flush()


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _places(workspace: DevboxWorkspace) -> dict[str, str]:
    return {"scratch": workspace.scratch, "directory": workspace.working_directory, "home": workspace.home}


def _warn(state: AttemptState, fact: str, words: str) -> None:
    structlog.get_logger().warning(fact, trial=str(state.key), error=words)
