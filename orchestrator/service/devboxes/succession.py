"""The boxes of one devbox, one after the other: its agent's, and when that has ended, boxes of ours over what it left.

Its secret: nothing is copied, and nothing of the agent's runs where it is judged. The agent's box is retired: its
processes end, its files stay. An *evidence box* shows them read-only to clients, with a scratch folder of its own and a
new HOME. Scorers run in *scoring boxes*, a new one for each scoring function: over the agent's
files where these are `shared`, over a fresh copy of the environment with what may cross moved into it where they are
`separate`. Only `live` scorers meet the agent's processes, in its own box.

A box of the machine's own system gets the folders with those files one by one. One of an image has the whole file
system of the box whose files it is over, with an empty /tmp and /tests; where it shows evidence, nothing of it can be
written, and the programs are ours.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import anyio.to_thread

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.devboxes.differences import Changes, compare, is_work, remember
from orchestrator.service.devboxes.remains import clear, empty, open_up, resolved, take
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.egress.proxy import Egress
from orchestrator.service.sandbox.folders import ARTIFACTS, VERIFIER
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import (
    HOME,
    Bind,
    Box,
    BoxDied,
    BoxSpec,
    Capability,
    Command,
    Provider,
    RemainingProcesses,
    shell,
)
from orchestrator.service.sandbox.safe_fs import remove

#: Places in an evidence box: of the findings, of the tree that the devbox began with, and of its scratch folder.
EVIDENCE: Final = "/run/evidence"
PREPARED: Final = "/run/prepared"
SCRATCH: Final = "/evidence"
#: Room of an evidence box, whatever the devbox has: a patch takes twice the changed files.
EVIDENCE_DISK_BYTES: Final = 8 << 30
_ASK_LIMIT_S: Final = 30.0
NOTHING: Final[Mapping[str, Sequence[str]]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The state in which an agent's box was left.

    `mode` says where scorers run now, `left` what still ran, `changes` what was changed (None: not noted).
    """

    mode: ScoringMode
    left: RemainingProcesses
    changes: Changes | None


async def _collect(box: Box, scripts: Sequence[tuple[str, float]]) -> None:
    """Run scripts, each within so many seconds. A file that one fails to make does not cross, and the tests say so."""
    program, variables = ("bash", {"HOME": HOME}) if box.tools is None else (f"{box.tools}/bash", {})
    for script, timeout in scripts:
        await run(box, Command(argv=(program, "-c", script), environment=variables), timeout=timeout)


@contextmanager
def _whole(box: Box) -> Iterator[None]:
    """Raise BoxDied where the files of a box cannot be handled: they were removed from the host."""
    try:
        yield
    except OSError as error:
        raise BoxDied(f"devbox {box.id}: its files cannot be handled: {error}") from error


class Succession:
    """The boxes of one devbox. `folder` is a place on the host for evidence, made when it is needed."""

    def __init__(
        self,
        *,
        provider: Provider,
        spec: BoxSpec,
        box: Box,
        prepared: Prepared,
        folder: Path,
        egress: Egress | None,
        covers: Sequence[Bind],
        settle_in: Callable[[Box], Awaitable[None]],
    ) -> None:
        self._provider = provider
        self._spec = spec
        self._covers = covers
        self._settle_in = settle_in
        self._holder = box
        self._prepared = prepared
        self._folder = folder
        self._egress = egress
        self._lock = anyio.Lock()
        self._count = 0
        self._is_retired = False
        self._is_suspended = False
        self._is_stopped = False
        #: Set when a box stands for the devbox again, while none does.
        self._awake: anyio.Event | None = None
        #: A fresh box, and what has yet to cross to it: nothing is judged of which a part has not.
        self._crossed: tuple[Box, dict[str, Path]] | None = None
        #: The box that commands of clients run in, and the agent's.
        self.front = self.agents = box
        #: The home of the agent's programs, or ours where an image's user has none to write in.
        self.home = HOME
        #: Whether an agent may have begun: what becomes of its box from then on is its own doing.
        self.is_marked = False
        self.settled: Settled | None = None

    @property
    def working_directory(self) -> str:
        return self._spec.working_directory

    @property
    def tools(self) -> str | None:
        """See `Box.tools`."""
        return self.agents.tools

    async def find_home(self) -> str:
        """Return where the agent's programs keep their files, as a path of the devbox. Raises BoxDied."""
        if self._spec.image is not None:
            script = '[ ! -d "$HOME" ] || [ ! -w "$HOME" ] || [ "$HOME" = / ] || printf %s "$HOME"'
            found = await run(self.agents, shell(script, words=self.agents.shell), timeout=_ASK_LIMIT_S)
            self.home = found.stdout.decode(errors="replace") or HOME
        return self.home

    async def wait_dead(self) -> tuple[str, bool]:
        """Wait until the box that stands for the devbox has ended, and no other takes its place.

        Return its words, and whether that was done from inside: by an agent, or by what it left.
        """
        while True:
            box = self.front if self._is_retired else self.agents
            how = await box.wait_dead()
            async with self._lock:
                awake = self._awake
                if awake is None and box is (self.front if self._is_retired else self.agents):
                    return how, self.is_marked and box.is_broken_from_inside
            if awake is not None:
                await awake.wait()

    async def save(self, target: Path) -> None:
        """Copy what the agent's box has written to `target`, as `Box.save`; everything in it stands still meanwhile.

        Raises BoxDied.
        """
        async with self._lock:
            try:
                await self.agents.freeze()
                with _whole(self.agents):
                    await self.agents.save(target)
            finally:
                if not self._is_suspended:
                    with anyio.CancelScope(shield=True):
                        await self.agents.thaw()

    async def suspend(self) -> None:
        """Freeze the only box, until `resume`."""
        async with self._lock:
            self._is_suspended = True
            await self.agents.freeze()

    async def resume(self) -> None:
        """Let the only box go on."""
        async with self._lock:
            self._is_suspended = False
            await self.agents.thaw()

    @property
    def woken(self) -> tuple[Path, ...]:
        """The layers above the environment's image that were kept while it slept; nothing writes them."""
        image, base = self._spec.image, self._prepared.image
        return image.layers[len(base.layers) :] if image and base else ()

    async def sleep(self, target: Path) -> None:
        """Move the files of the only box to `target`, as `Box.keep_layer`, and end it. Raises BoxDied.

        None stands for the devbox until `wake`.
        """
        async with self._lock:
            self._awake = anyio.Event()
            try:
                with _whole(self.agents):
                    await self.agents.keep_layer(target)
            except BaseException:
                self._rise()
                raise
            await self.agents.stop()

    async def wake(self, spec: BoxSpec) -> Box:
        """Start a box as `spec` says, to stand for the devbox again. Raises BoxStartFailed and BoxDied."""
        box = await self._provider.start(spec)
        if self._is_stopped:
            await box.stop()
            raise BoxDied(f"devbox {spec.id}: it was shut down meanwhile")
        self._spec, self._holder, self.front, self.agents = spec, box, box, box
        self._rise()
        return box

    def _rise(self) -> None:
        if self._awake is not None:
            self._awake.set()
            self._awake = None

    @property
    def spec(self) -> BoxSpec:
        """The spec of its agent's box."""
        return self._spec

    async def mark(self) -> None:
        """Note how everything is: the agent begins now. Raises BoxDied."""

        def note() -> None:
            remove(self._folder)
            self._folder.mkdir()
            self._folder.chmod(0o755)
            written, directory = self.agents.written, self.working_directory
            remember(written, directory=directory, prepared=self._prepared.root, keep=self._folder)

        async with self._lock:
            if self.settled is None and Capability.SUCCESSION in self._provider.capabilities:
                with _whole(self.agents):
                    await anyio.to_thread.run_sync(note)
                self.is_marked = True

    async def settle(
        self, wanted: ScoringMode, collect: Sequence[tuple[str, float]] = (), *, is_live_over: bool = False
    ) -> Settled:
        """End what the agent left running, unless scorers are to meet it, and show the files read-only.

        The scripts `collect` write what is to cross to a separate scoring, each within so many seconds: beside a
        server that the agent left, else when nothing of the agent's runs any more. Who comes again gets the same
        answer; what was `live` is made what is wanted when that is over. Raises BoxDied and BoxStartFailed.
        """
        async with self._lock:
            before = self.settled
            if before is not None and not (before.mode is ScoringMode.LIVE and is_live_over):
                return before
            if Capability.SUCCESSION not in self._provider.capabilities:
                self.settled = Settled(mode=ScoringMode.LIVE, left=RemainingProcesses(), changes=None)
                return self.settled
            with _whole(self.agents):
                left = before.left if before else await self.agents.remaining()
                is_served = left.is_listening and not is_live_over
                if is_served:
                    await _collect(self.agents, collect)
                mode = ScoringMode.LIVE if wanted is ScoringMode.SHARED and is_served else wanted
                if mode is not ScoringMode.LIVE:
                    await self.agents.retire()
                    self._is_retired = True
                    await anyio.to_thread.run_sync(self._open_up)
                    if collect and not is_served:
                        async with self.scoring_box(is_whole=True) as box:
                            await _collect(box, collect)
                changes = await anyio.to_thread.run_sync(self._compare) if self.is_marked else None
                await self.show()
            self.settled = Settled(mode=mode, left=left, changes=changes)
            return self.settled

    def _compare(self) -> Changes:
        directory, environment = self.working_directory, self._prepared.environment
        return compare(self.agents.written, directory=directory, keep=self._folder, environment=environment)

    def _open_up(self) -> None:
        """Open the folders that an agent may have closed; what our own steps kept in its home goes."""
        clear(self.agents.place("/"), f"{self.home}/.sweep")
        for path in (self.home, "/logs", "/logs/agent", ARTIFACTS, self._spec.working_directory):
            open_up(self.agents.place("/"), path)

    async def show(self) -> None:
        """Give clients an evidence box over the files as they are now. Raises BoxStartFailed and BoxDied.

        The files of the last one go with the devbox: nobody waits for the removal of all that a client wrote there.
        """
        last = self.front
        findings = [Bind(source=self._folder, target=EVIDENCE)] if self.is_marked else []
        if self._prepared.root is not None:
            findings.append(Bind(source=self._prepared.root, target=PREPARED))
        spec = BoxSpec(
            id=self._next("evidence"),
            resources=replace(self._spec.resources, disk=EVIDENCE_DISK_BYTES),
            working_directory=SCRATCH,
            environment={"HOME": SCRATCH, "TMPDIR": SCRATCH, **({"PATH": self.tools} if self.tools else {})},
            binds=(*self._covers, *findings),
        )
        if self._spec.image is None:
            spec = replace(spec, binds=(*spec.binds, *self._tops(is_writable=False)))
        else:
            spec = replace(spec, image=self._spec.image, is_read_only=True, scratch=(SCRATCH,))
        self.front = await self._provider.start(spec, beside=self._holder)
        if last is not self.agents:
            await last.retire()

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{self._spec.id}.{kind}-{self._count}"

    def _tops(self, *, is_writable: bool, but: Sequence[str] = ()) -> Sequence[Bind]:
        """Bind the own folders of the box that has the files. Raises BoxDied."""
        with _whole(self._holder):
            homes = [f"home/{each.name}" for each in sorted((self.files / "home").iterdir())]
            names = [each.name for each in sorted(self.files.iterdir()) if each.name != "home"]
        return [
            Bind(source=self.files / name, target=f"/{name}", is_writable=is_writable)
            for name in (*names, *homes)
            if f"/{name}" not in but
        ]

    async def lay_out(self, mode: ScoringMode, crossing: Mapping[str, Sequence[str]] = NOTHING) -> None:
        """Make ready for a scoring that is not live. Raises BoxStartFailed and BoxDied.

        In a `separate` one, `crossing` are the paths that go from what was left to the same place in a fresh copy of
        the environment, each with the patterns of what in it does not.
        """
        if mode is ScoringMode.SEPARATE:
            with _whole(self._holder):
                if self._crossed is None:
                    moves = await anyio.to_thread.run_sync(self._crossing, (*crossing, ARTIFACTS))
                    self._crossed = await self._fresh(), dict(moves)
                fresh, left = self._crossed
                for path, source in list(left.items()):
                    exclude = crossing.get(path, crossing.get("/", ()))
                    await anyio.to_thread.run_sync(partial(take, fresh.place("/"), path, source, exclude=exclude))
                    del left[path]
                self._holder, self._crossed = fresh, None
        with _whole(self._holder):
            await anyio.to_thread.run_sync(self._drop_leading)
        await self.empty_verifier()

    async def empty_verifier(self) -> None:
        """Make the folder that tests write into new and empty. Raises BoxDied."""
        with _whole(self._holder):
            await anyio.to_thread.run_sync(empty, self.files, VERIFIER)

    @asynccontextmanager
    async def untouched(self) -> AsyncIterator[None]:
        """Have a fresh copy of the environment judged meanwhile, with nothing of the agent's in it."""
        holder, self._holder = self._holder, await self._fresh()
        try:
            await self.empty_verifier()
            yield
        finally:
            fresh, self._holder = self._holder, holder
            await fresh.stop()

    async def _fresh(self) -> Box:
        """Start a box of the environment as the agent's was before it began, and retire it: nothing runs any more."""
        identity = self._next("fresh")
        spec = replace(
            self._spec,
            id=identity,
            root=self._prepared.root,
            environment=self._environment(),
            binds=tuple(self._covers),
            layer=None if self._spec.image is None else self._folder.with_name(identity),
        )
        box = await self._provider.start(spec, beside=self.agents)
        try:
            async with self._let_out(box):
                await self._settle_in(box)
            await box.retire()
        except BaseException:
            await box.stop()
            raise
        return box

    def _environment(self, asked: Collection[str] = ()) -> Mapping[str, str]:
        """Return the variables of the environment, and of the agent's box those that are `asked` for."""
        proxy = {} if self._egress is None else self._egress.variables
        given = {name: value for name, value in self._spec.environment.items() if name in asked}
        return {**self._prepared.environment, **proxy, **given}

    @asynccontextmanager
    async def _let_out(self, box: Box) -> AsyncIterator[None]:
        """Serve the devbox's way out from another box too."""
        if self._egress is None:
            yield
            return
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._egress.serve, box)
            yield
            tasks.cancel_scope.cancel()

    def _drop_leading(self) -> None:
        """Remove the agent's links to where scorers have their files: such a link would be the answer, and no file."""
        changes = self.settled.changes if self.settled is not None else None
        for path in changes.leading if changes is not None else ():
            clear(self.files, f"/{path}")

    def _crossing(self, paths: Sequence[str]) -> Mapping[str, Path]:
        """Find the real place of each path; one inside another goes with it. Of a whole root what is work crosses."""
        root = self._holder.place("/")
        wanted = {str(PurePosixPath(path)) for path in paths}
        if "/" in wanted:
            wanted = (wanted - {"/"}) | {f"/{place.name}" for place in root.iterdir() if is_work(place.name)}
        outermost = [path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted)]
        found = {path: place for path in outermost if (place := resolved(root, path)) is not None}
        real = set(found.values())
        return {path: place for path, place in found.items() if not any(up in real for up in place.parents)}

    @property
    def files(self) -> Path:
        """The folder on the host with what is judged: see `remains`."""
        return self._holder.place("/")

    async def need_whole(self) -> None:
        """Raise BoxDied where what is judged was removed from the host."""
        if not await self._holder.is_whole():
            raise BoxDied(f"devbox {self.agents.id}: its files were removed from the host")

    def _judged(self, *, is_whole: bool) -> BoxSpec:
        """Describe a box over the files that are judged: all of them, or all but /tests and the agent's /tmp.

        A working directory in /tmp comes along all the same.
        """
        binds: list[Bind] = []
        is_hidden = not is_whole and self._holder is self.agents
        if is_hidden and PurePosixPath(self.working_directory).is_relative_to("/tmp"):  # noqa: S108
            place = self.files / self.working_directory.strip("/")
            binds.append(Bind(source=place, target=self.working_directory, is_writable=True))
        left_out = (*(() if is_whole else ("/tests",)), *(("/tmp",) if is_hidden else ()))  # noqa: S108
        if self._spec.image is not None:
            return replace(self._spec, root=None, binds=(*self._covers, *binds), scratch=left_out)
        tops = self._tops(is_writable=True, but=left_out)
        return replace(self._spec, root=None, binds=(*self._covers, *tops, *binds))

    @asynccontextmanager
    async def scoring_box(
        self, given: Sequence[Bind] = (), variables: Collection[str] = (), *, is_whole: bool = False
    ) -> AsyncIterator[Box]:
        """Start a box over the files as they are, with `given` files and the way out; /tmp has nothing of the agent's.

        If it `is_whole`, /tmp is the agent's. Of the variables of the agent's box it has those of the environment, and
        by name those that the scenario asks for. Everything in it ends with the context. Raises BoxStartFailed.
        """
        judged = self._judged(is_whole=is_whole)
        environment, identity = self._environment(variables), self._next("scoring")
        box = await self._provider.start(
            replace(
                judged,
                id=identity,
                user=self._prepared.verifier_user,
                environment=environment,
                binds=(*judged.binds, *given),
            ),
            beside=self._holder,
        )
        try:
            async with self._let_out(box):
                yield box
        finally:
            await box.stop()

    async def stop(self) -> None:
        """End all of them, and remove what they left."""
        self._is_stopped = True
        await self.agents.stop()
        with suppress(OSError):
            await anyio.to_thread.run_sync(partial(remove, self._folder))
