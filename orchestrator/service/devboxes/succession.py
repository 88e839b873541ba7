"""The boxes of one devbox, one after the other: its agent's, and when that has ended, boxes of ours over what it left.

Its secret: nothing is copied, and nothing of the agent's runs where it is judged. The agent's box is retired: its
processes end, its files stay. An *evidence box* shows them read-only to clients, with a scratch folder of its own and a
new HOME. Scorers run in *scoring boxes*, a new one for each scoring function: over the agent's
files where these are `shared`, over a fresh copy of the environment with what may cross moved into it where they are
`separate`; that may be an environment of the verifier's own. Only `live` scorers meet the agent's processes, in its own
box.

A box of the machine's own system gets the folders with those files one by one. One of an image has the whole file
system of the box whose files it is over, with another /tests; where it shows evidence, nothing of it can be
written, and the programs are ours.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import anyio.to_thread
import orjson

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.devboxes.differences import Changes, compare, is_work, remember
from orchestrator.service.devboxes.remains import clear, empty, entries, open_up, resolved, take
from orchestrator.service.sandbox.commands import run
from orchestrator.service.sandbox.egress.proxy import Egress
from orchestrator.service.sandbox.folders import ARTIFACTS, TESTS, VERIFIER
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
#: Seconds to put back what crossed to an earlier scoring.
_PUT_BACK_LIMIT_S: Final = 120.0
#: Beside the findings of an evidence box: what crosses to a separate scoring, as `Succession.settle` says.
CROSSING: Final = "crossing.json"
#: In the place of the paths $@, in an archive whose pieces are in a folder that may be below one of them.
_PUT_BACK: Final = """\
shopt -s nullglob
pieces=()
for each in "$kept"/*; do exec {piece}<"$each"; pieces+=("$piece"); done
cd / && rm -rf -- "$@"
for piece in "${pieces[@]}"; do cat <&"$piece"; done |
    tar -xpf - --numeric-owner --delay-directory-restore --ignore-zeros --anchored --exclude="$index"
"""
NOTHING: Final[Mapping[str, Sequence[str]]] = {}
NO_VARIABLES: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The state in which an agent's box was left.

    `mode` says where scorers run now, `left` what still ran, `changes` what was changed (None: not noted).
    """

    mode: ScoringMode
    left: RemainingProcesses
    changes: Changes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootable:
    """An environment as boxes of one devbox have it: a box of it starts as `spec` says, and `settle_in` makes it ready.

    `covers` are those of the binds that hide or set something whatever the environment is, `egress` is its way out.
    """

    prepared: Prepared
    spec: BoxSpec
    covers: Sequence[Bind]
    egress: Egress | None
    settle_in: Callable[[Box], Awaitable[None]]

    def environment(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """Return its variables, and those that are `given`."""
        proxy = {} if self.egress is None else self.egress.variables
        return {**self.prepared.environment, **proxy, **given}

    @asynccontextmanager
    async def let_out(self, box: Box) -> AsyncIterator[None]:
        """Serve its way out from a box of it."""
        if self.egress is None:
            yield
            return
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.egress.serve, box)
            yield
            tasks.cancel_scope.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collecting:
    """A script that writes what is to cross, within `timeout` seconds; as another `user` than scorers unless None."""

    script: str
    timeout: float
    user: str | None = None


async def _collect(box: Box, scripts: Sequence[Collecting]) -> None:
    """Run scripts. A file that one fails to make does not cross, and the tests say so."""
    program, variables = ("bash", {"HOME": HOME}) if box.tools is None else (f"{box.tools}/bash", {})
    for each in scripts:
        command = Command(argv=(program, "-c", each.script), environment=variables, user=each.user)
        await run(box, command, timeout=each.timeout)


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
        agents: Bootable,
        box: Box,
        folder: Path,
        verifiers: Sequence[Bootable | None] = (),
    ) -> None:
        """`verifiers` are those environments of scorers, by step, which are not the agent's, of which `box` is."""
        self._provider = provider
        self._agents = self._judged = agents
        self._of_scorers = dict(enumerate(verifiers))
        #: The environment in which the step under way is scored.
        self._scorers = agents
        #: The box that has the agent's files, and the one whose files are judged.
        self._keeper = self._holder = box
        self._folder = folder
        #: What is noted of the agent's step; boxes that show it keep its place for as long as they last.
        self._notes = folder / "0"
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
        #: What scorers may load, and code under test has changed while an earlier step was judged.
        self._changed_while_judged: frozenset[str] = frozenset()

    @property
    def working_directory(self) -> str:
        """The agent's."""
        return self.spec.working_directory

    @property
    def scorers_directory(self) -> str:
        """The working directory of scorers, once a scoring was laid out."""
        return self._judged.spec.working_directory

    @property
    def tools(self) -> str | None:
        """See `Box.tools`; of the box whose files are judged."""
        return self._holder.tools

    async def find_home(self) -> str:
        """Return where the agent's programs keep their files, as a path of the devbox. Raises BoxDied."""
        if self.spec.image is not None:
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
                with _whole(self._keeper):
                    await self._keeper.save(target)
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
        image, base = self.spec.image, self._agents.prepared.image
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
        self._agents = self._judged = replace(self._agents, spec=spec)
        self._keeper = self._holder = self.front = self.agents = box
        self._rise()
        return box

    async def go_on(self) -> Box:
        """Let an agent begin again on what was left; return its box: a new one, unless its last one was not retired.

        What code under test has changed meanwhile belongs to the changes of the next agent. Raises BoxStartFailed and
        BoxDied.
        """
        async with self._lock:
            box, before = self.agents, {self.agents, self._holder, self.front}
            await self._note_judged()
            if self._crossed is not None:
                before.add(self._crossed[0])
            if self._is_retired:
                tops = self._tops(is_writable=True, of=self._keeper) if self.spec.image is None else ()
                spec = replace(self.spec, id=self._next("agent"), root=None, binds=(*tops, *self.spec.binds))
                box = await self._provider.start(spec, beside=self._keeper)
            self._crossed, self.settled, self.is_marked, self._is_retired = None, None, False, False
            self._notes = self._folder / str(self._count)
            self.front = self.agents = box
            self._holder, self._judged = self._keeper, self._agents
            for each in before - {self._keeper, box}:
                await each.stop()
            return box

    async def note_judged(self) -> None:
        """Add to the agent's changes what code under test has changed since: a further scorer may have loaded it.

        Raises BoxDied.
        """
        async with self._lock:
            if await self._note_judged() and self.settled is not None and self.settled.changes is not None:
                changes = self.settled.changes
                system = tuple(sorted({*changes.system, *self._changed_while_judged}))
                self.settled = replace(self.settled, changes=replace(changes, system=system))

    async def _note_judged(self) -> bool:
        """Note what scorers may load, and was changed after the agent had ended; tell if there is anything."""
        if self.settled is None or self.settled.changes is None:
            return False
        with _whole(self._keeper):
            found = await anyio.to_thread.run_sync(self._compare)
        changed = {*found.system} - {*self.settled.changes.system}
        self._changed_while_judged |= changed
        return bool(changed)

    def _rise(self) -> None:
        if self._awake is not None:
            self._awake.set()
            self._awake = None

    @property
    def spec(self) -> BoxSpec:
        """The spec of its agent's box."""
        return self._agents.spec

    async def mark(self) -> None:
        """Note how everything is: the agent begins now. Raises BoxDied."""

        def note() -> None:
            remove(self._notes)
            self._notes.mkdir(parents=True)
            self._notes.chmod(0o755)
            written, directory = self._keeper.written, self.working_directory
            remember(written, directory=directory, prepared=self._agents.prepared.root, keep=self._notes)

        async with self._lock:
            if self.settled is None and Capability.SUCCESSION in self._provider.capabilities:
                with _whole(self._keeper):
                    await anyio.to_thread.run_sync(note)
                self.is_marked = True

    async def settle(
        self,
        wanted: ScoringMode,
        collect: Sequence[Collecting] = (),
        crossing: Mapping[str, Sequence[str]] = NOTHING,
        *,
        kept: str | None = None,
        is_live_over: bool = False,
    ) -> Settled:
        """End what the agent left running, unless scorers are to meet it, and show the files read-only.

        The scripts `collect` write what is to cross to a separate scoring: beside a server that the agent left, else
        when nothing of the agent's runs any more. The artifacts in `crossing`, as in `lay_out`, are listed for who
        keeps them: `crossing.json` has their paths and patterns, `crossing.tops` and `crossing.list` name what is
        there, NUL between them. What was kept of an earlier devbox is put in their place instead of all that, from
        the folder `kept` with the pieces of an archive of these three.

        Who comes again gets the same answer; what was `live` is made what is wanted when that is over. Raises BoxDied
        and BoxStartFailed.
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
                    if mode is ScoringMode.SEPARATE and kept is not None:
                        await self._put_back(kept, crossing)
                    await anyio.to_thread.run_sync(self._open_up)
                    if collect and kept is None and not is_served:
                        async with self.scoring_box(is_whole=True) as box:
                            await _collect(box, collect)
                changes = await anyio.to_thread.run_sync(self._compare) if self.is_marked else None
                if changes is not None and self._changed_while_judged:
                    changes = replace(changes, system=tuple(sorted({*changes.system, *self._changed_while_judged})))
                if self.is_marked and mode is ScoringMode.SEPARATE:
                    await anyio.to_thread.run_sync(self._list_crossing, crossing)
                await self.show()
            self.settled = Settled(mode=mode, left=left, changes=changes)
            return self.settled

    async def _put_back(self, kept: str, crossing: Mapping[str, Sequence[str]]) -> None:
        """Put what was kept in the place of what crosses. Who keeps that again finds out if it is the same."""
        paths = self._outermost((*crossing, ARTIFACTS))
        async with self.scoring_box(is_whole=True) as box:
            program, user = ("bash", None) if box.tools is None else (f"{box.tools}/bash", "root")
            variables = {"kept": kept, "index": CROSSING, **({"PATH": box.tools} if box.tools else {})}
            argv = (program, "-c", _PUT_BACK, program, *paths)
            await run(box, Command(argv=argv, environment=variables, user=user), timeout=_PUT_BACK_LIMIT_S)

    def _list_crossing(self, crossing: Mapping[str, Sequence[str]]) -> None:
        """List what crosses, but for a working directory that does as a whole: of that there is a patch.

        Where nothing else crosses, there is no list.
        """
        found = self._crossing((*crossing, ARTIFACTS))
        below = [
            f"{path}/{each}"
            for path, place in sorted(found.items())
            for each in sorted(entries(place, crossing.get(path, crossing.get("/", ()))))
        ]
        if not crossing and not below:
            return
        for name, paths in {"tops": sorted(found), "list": below}.items():
            (self._notes / f"crossing.{name}").write_bytes(b"".join(os.fsencode(f".{path}\0") for path in paths))
        (self._notes / CROSSING).write_bytes(orjson.dumps({ARTIFACTS: (), **crossing}))

    def _compare(self) -> Changes:
        directory, environment = self.working_directory, self._agents.prepared.environment
        return compare(self._keeper.written, directory=directory, keep=self._notes, environment=environment)

    def _open_up(self) -> None:
        """Open the folders that an agent may have closed; what our own steps kept in its home goes."""
        root = self._keeper.place("/")
        clear(root, f"{self.home}/.sweep")
        for path in (self.home, "/tmp", "/logs", "/logs/agent", ARTIFACTS, self.working_directory):  # noqa: S108
            open_up(root, path)

    async def show(self) -> None:
        """Give clients an evidence box over the files as they are now. Raises BoxStartFailed and BoxDied.

        The files of the last one go with the devbox: nobody waits for the removal of all that a client wrote there.
        """
        last, judged, prepared = self.front, self._judged, self._agents.prepared
        findings = [Bind(source=self._notes, target=EVIDENCE)] if self.is_marked else []
        if prepared.root is not None:
            findings.append(Bind(source=prepared.root, target=PREPARED))
        spec = BoxSpec(
            id=self._next("evidence"),
            resources=replace(judged.spec.resources, disk=EVIDENCE_DISK_BYTES),
            working_directory=SCRATCH,
            environment={"HOME": SCRATCH, "TMPDIR": SCRATCH, **({"PATH": self.tools} if self.tools else {})},
            binds=(*judged.covers, *findings),
        )
        if judged.spec.image is None:
            spec = replace(spec, binds=(*spec.binds, *self._tops(is_writable=False)))
        else:
            spec = replace(spec, image=judged.spec.image, is_read_only=True, scratch={SCRATCH: None})
        self.front = await self._provider.start(spec, beside=self._holder)
        if last is not self.agents:
            await last.retire()

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{self.spec.id}.{kind}-{self._count}"

    def _tops(self, *, is_writable: bool, but: Collection[str] = (), of: Box | None = None) -> Sequence[Bind]:
        """Bind the own folders of the box that has the files, or of another. Raises BoxDied."""
        holder = of or self._holder
        files = holder.place("/")
        with _whole(holder):
            homes = [f"home/{each.name}" for each in sorted((files / "home").iterdir())]
            names = [each.name for each in sorted(files.iterdir()) if each.name != "home"]
        return [
            Bind(source=files / name, target=f"/{name}", is_writable=is_writable)
            for name in (*names, *homes)
            if f"/{name}" not in but
        ]

    async def lay_out(
        self,
        mode: ScoringMode,
        crossing: Mapping[str, Sequence[str]] = NOTHING,
        *,
        is_copied: bool = False,
        step: int = 0,
    ) -> None:
        """Make ready for a scoring that is not live. Raises BoxStartFailed and BoxDied.

        In a `separate` one, `crossing` are the paths that go from what was left to the same place in a fresh copy of
        the scorers' environment, each with the patterns of what in it does not. They are moved, or if an agent is to
        go on with them `is_copied`. What is scored is a `step`, by its number.
        """
        self._scorers = self._of_scorers.get(step) or self._agents
        if mode is ScoringMode.SEPARATE:
            with _whole(self._holder):
                if self._crossed is None:
                    moves = await anyio.to_thread.run_sync(self._crossing, (*crossing, ARTIFACTS))
                    self._crossed = await self._fresh(), dict(moves)
                fresh, left = self._crossed
                for path, source in list(left.items()):
                    exclude = crossing.get(path, crossing.get("/", ()))
                    is_shared = list(left.values()).count(source) > 1  # links of the agent may lead to one place
                    taking = partial(take, fresh.place("/"), path, source, exclude=exclude)
                    await anyio.to_thread.run_sync(partial(taking, is_copied=is_copied or is_shared))
                    del left[path]
                self._holder, self._crossed = fresh, None
        self._judged = self._scorers
        with _whole(self._holder):
            await anyio.to_thread.run_sync(self._drop_leading)
        await self.empty_verifier()

    async def empty_verifier(self) -> None:
        """Make the folder that tests write into new and empty. Raises BoxDied."""
        with _whole(self._holder):
            await anyio.to_thread.run_sync(empty, self.files, VERIFIER)

    @asynccontextmanager
    async def untouched(self) -> AsyncIterator[None]:
        """Have a fresh copy of the scorers' environment judged meanwhile, with nothing of the agent's in it."""
        holder, self._holder = self._holder, await self._fresh()
        try:
            await self.empty_verifier()
            yield
        finally:
            fresh, self._holder = self._holder, holder
            await fresh.stop()

    async def _fresh(self) -> Box:
        """Start a box of the scorers' environment as it is before anybody began, and retire it: nothing runs in it."""
        verifiers = self._scorers
        spec = replace(self._new(verifiers), environment=verifiers.environment({}))
        box = await self._provider.start(spec, beside=self._keeper)
        try:
            async with verifiers.let_out(box):
                await verifiers.settle_in(box)
            await box.retire()
        except BaseException:
            await box.stop()
            raise
        return box

    @asynccontextmanager
    async def unspoilt(self) -> AsyncIterator[Box]:
        """Start a box of the agent's environment as it is before anybody began; it ends with the context.

        Raises BoxStartFailed and BoxDied, and BadRequest for what cannot be prepared.
        """
        box = await self._provider.start(self._new(self._agents), beside=self._keeper)
        try:
            async with self._agents.let_out(box):
                await self._agents.settle_in(box)
                yield box
        finally:
            with anyio.CancelScope(shield=True):
                await box.stop()

    def _new(self, wanted: Bootable) -> BoxSpec:
        """Describe a box of an environment in which nobody has worked."""
        identity = self._next("fresh")
        layer = None if wanted.spec.image is None else self._folder.with_name(identity)
        return replace(wanted.spec, id=identity, root=wanted.prepared.root, binds=tuple(wanted.covers), layer=layer)

    def _drop_leading(self) -> None:
        """Remove the agent's links to where scorers have their files: such a link would be the answer, and no file."""
        changes = self.settled.changes if self.settled is not None else None
        for path in changes.leading if changes is not None else ():
            clear(self.files, f"/{path}")

    def _crossing(self, paths: Sequence[str]) -> Mapping[str, Path]:
        """Find the real place of each path; one inside another goes with it. Of a whole root what is work crosses."""
        root = self._holder.place("/")
        found = {path: place for path in self._outermost(paths) if (place := resolved(root, path)) is not None}
        real = set(found.values())
        return {path: place for path, place in found.items() if not any(up in real for up in place.parents)}

    def _outermost(self, paths: Sequence[str]) -> Sequence[str]:
        """Leave out what is inside another; of a whole root take what is work."""
        wanted = {str(PurePosixPath(path)) for path in paths}
        if "/" in wanted:
            root = self._holder.place("/")
            wanted = (wanted - {"/"}) | {f"/{place.name}" for place in root.iterdir() if is_work(place.name)}
        return [path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted)]

    @property
    def files(self) -> Path:
        """The folder on the host with what is judged: see `remains`."""
        return self._holder.place("/")

    async def need_whole(self) -> None:
        """Raise BoxDied where what is judged was removed from the host."""
        if not await self._holder.is_whole():
            raise BoxDied(f"devbox {self.agents.id}: its files were removed from the host")

    def _over(self, *, is_whole: bool, tests: Path | None) -> BoxSpec:
        """Describe a box over the files that are judged: all of them, or all but /tests, if that is not its own."""
        judged = self._judged
        scratch = {} if is_whole or judged.prepared.has_tests else {TESTS: tests}
        tops = self._tops(is_writable=True, but=scratch) if judged.spec.image is None else ()
        return replace(judged.spec, root=None, binds=(*judged.covers, *tops), scratch=scratch)

    @asynccontextmanager
    async def scoring_box(
        self,
        given: Sequence[Bind] = (),
        variables: Mapping[str, str] = NO_VARIABLES,
        *,
        tests: Path | None = None,
        is_whole: bool = False,
    ) -> AsyncIterator[Box]:
        """Start a box over the files as they are, with `given` files and the way out.

        Its /tests is a copy of the folder `tests`, unless the environment has its own, or it `is_whole`. It has the
        variables of its environment, and these. Everything in it ends with the context. Raises BoxStartFailed.
        """
        judged, over = self._judged, self._over(is_whole=is_whole, tests=tests)
        box = await self._provider.start(
            replace(
                over,
                id=self._next("scoring"),
                user=judged.prepared.verifier_user,
                environment=judged.environment(variables),
                binds=(*over.binds, *given),
            ),
            beside=self._holder,
        )
        try:
            async with judged.let_out(box):
                yield box
        finally:
            await box.stop()

    async def stop(self) -> None:
        """End all of them, and remove what they left."""
        self._is_stopped = True
        await self._keeper.stop()
        with suppress(OSError):
            await anyio.to_thread.run_sync(partial(remove, self._folder))
