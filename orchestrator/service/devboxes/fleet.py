"""All devboxes of the service: each has a row in the store and, while it lives, one task that boots it and sees it end.

However a devbox ends (by request, by its keep-alive, by dying), the end is recorded by one function, in one
transaction with everything that hangs on it, and its task stops the box. Nobody polls: waiters are woken by changes,
keep-alive and idle time are the deadline of the task's own cancel scope, and the box says when it died.
A devbox that is suspended is frozen first; after a while what ran in it is ended, and its files wait for a new box.
What a devbox is booted with stays in memory (it may hold keys): no devbox outlives the service that booted it.
"""

import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace as replaced

from orchestrator.core.errors import InternalError, SweepError
from orchestrator.core.protocol import DEVBOX_DEAD, DevboxStatus, Isolation
from orchestrator.service.devboxes import boot, states
from orchestrator.service.devboxes.blueprints import with_start
from orchestrator.service.devboxes.network import box_network, described, network_of, policy_of, way_out
from orchestrator.service.devboxes.output import LogEntry, append_setup, prune_hourly
from orchestrator.service.devboxes.requests import DevboxRequest, Launch, parse_launch
from orchestrator.service.devboxes.states import End, failure, failure_reason, shutdown
from orchestrator.service.devboxes.succession import Bootable, Succession
from orchestrator.service.environments.image_builds import BuildFailed
from orchestrator.service.environments.installs import MOUNT, InstallFailed, Installs
from orchestrator.service.environments.package_managers import Settings, covers
from orchestrator.service.errors import BadRequest, Conflict, NotFound, ServiceError, Unwritable, WaitExpired
from orchestrator.service.records import Created, DevboxRecord, SnapshotStatus
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.proxy import Egress
from orchestrator.service.sandbox.egress.rules import Network
from orchestrator.service.sandbox.prepared import Preparation, Prepare, Prepared, StepStart
from orchestrator.service.sandbox.provider import (
    Bind,
    Box,
    BoxDied,
    BoxNetwork,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Provider,
    Resources,
)
from orchestrator.service.sandbox.safe_fs import remove
from orchestrator.service.store import DEVBOXES, SNAPSHOTS, ListQuery, Page, Store, insist, now_ms

STOP_TIMEOUT_S: Final = 20.0
#: Time after which what is frozen in a suspended devbox ends.
FROZEN_S: Final = 600.0
#: Time after which a request whose transaction was undone is forgotten.
FORGET_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Order:
    """A devbox to boot. `policies` are the scenario's and the client's; `since` is monotonic time."""

    request: DevboxRequest
    launch: Launch
    policies: tuple[Network | None, Network | None]
    since: float


@dataclass(slots=True)
class _Live:
    """A devbox that has not ended, as its task knows it. `users` are the commands and transfers under way in it."""

    id: str
    order: _Order
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)
    status: DevboxStatus = DevboxStatus.PROVISIONING
    preparation: Preparation = field(default_factory=Preparation)
    boxes: Succession | None = None
    egress: Egress | None = None
    users: int = 0
    #: What goes on beside the boot and the watch; it ends with the devbox.
    helpers: TaskGroup | None = None
    #: Where idle devboxes are suspended: its deadline is when.
    idle: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    #: Held while its state is changed by suspending, resuming, and ending what is frozen.
    moving: anyio.Lock = field(default_factory=anyio.Lock)
    suspensions: int = 0
    is_asleep: bool = False
    #: A box that was started after a sleep, in which the launch commands have yet to run.
    is_new: bool = False
    #: Of the box that stands for it.
    way_out: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def shown(self) -> Mapping[str, Any]:
        """What its record gets at its end, or never: the counts of its way out, and what it waits for."""
        counts = {} if self.egress is None else self.egress.counters.document()
        return counts if self.boxes is not None else {**counts, "preparing": self.preparation.doing() or None}

    def touch(self) -> None:
        """Start the idle time again; the keep-alive of a devbox without an idle setting goes on."""
        launch = self.order.launch
        if launch.idle is not None and self.status == DevboxStatus.RUNNING:
            scope = self.idle if launch.suspends else self.scope
            scope.deadline = float("inf") if self.users else anyio.current_time() + launch.idle


class Fleet:
    """Use `async with fleet`: entering ends what an earlier service left alive; on leaving, every devbox is shut down.

    `on_end` is called in the transaction in which a devbox ends, after its executions were completed. The provider
    stays open.
    """

    def __init__(
        self,
        *,
        store: Store,
        provider: Provider,
        state: Path,
        blueprints: Callable[[str, Preparation], Awaitable[Prepared]],
        snapshots: Callable[[str, Preparation], Awaitable[Prepared]] | None = None,
        on_end: states.OnEnd = lambda _db, _devbox: None,
        installs: Installs | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        self._rows = states.DevboxRows(store, on_end)
        self.output = state / "output"
        self._evidence = state / "evidence"
        self._store = store
        self._provider = provider
        self._blueprints = blueprints
        self._snapshots = snapshots
        self._asleep = state / "asleep"
        self._installs = installs
        self._resolve = resolve
        self._changes = states.ChangeEvents()
        self._live: dict[str, _Live] = {}
        self._ended: dict[str, DevboxStatus] = {}
        self._orders: dict[str, _Order] = {}
        self._orders_lock = threading.Lock()
        self._tasks: TaskGroup | None = None
        self._covers: tuple[Bind, ...] = ()
        self._state = state
        self._settings_of: dict[BoxNetwork, Settings] = {}
        self._reading = anyio.Lock()

    async def __aenter__(self) -> Self:
        self._ended = await self._rows.end_leftovers()
        for folder in (self._evidence, self._asleep):
            await anyio.to_thread.run_sync(remove, folder)
            folder.mkdir(mode=0o700)
        if Capability.ISOLATED in self._provider.capabilities:
            self._covers = await anyio.to_thread.run_sync(covers, self.output.parent / "nothing")
        self._tasks = await anyio.create_task_group().__aenter__()
        self.start_soon(prune_hourly, self._store, self.output)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._group(), None
        tasks.cancel_scope.cancel()
        if isinstance(error, Exception):  # it leaves as it is, not inside a group
            await tasks.__aexit__(None, None, None)
            return None
        return await tasks.__aexit__(kind, error, trace)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run something for as long as the fleet is open; it is cancelled when the fleet closes."""
        self._group().start_soon(function, *args)

    def _group(self) -> TaskGroup:
        if self._tasks is None:
            raise InternalError("The fleet is not open.")
        return self._tasks

    def insert(self, db: sqlite3.Connection, request: DevboxRequest) -> DevboxRecord:
        """Insert a devbox in the caller's transaction; `boot_soon` it after the commit. Raises BadRequest."""
        request = with_start(db, request)
        if request.install is not None and (self._installs is None or not self._installs.is_possible):
            how = f"by devboxes of isolation '{self._provider.name}'"
            raise BadRequest(f"mounts: {MOUNT!r} is not supported {how}; install by commands in them instead.")
        launch = parse_launch(request.launch_parameters)
        capabilities, identity = self._provider.capabilities, request.launch_parameters.get("network_policy_id")
        of_scenario = policy_of(db, request.scenario_policy_id, capabilities)
        policies = of_scenario, policy_of(db, identity, capabilities)
        devbox = states.new_devbox(request, launch)
        DEVBOXES.insert(db, devbox)
        with self._orders_lock:
            self._orders[devbox.id] = _Order(request, launch, policies, time.monotonic())
        return devbox

    async def create(self, request: DevboxRequest, key: str | None) -> DevboxRecord:
        """Insert and boot a devbox, once for each idempotency key. Raises BadRequest."""

        def insert(db: sqlite3.Connection) -> Created:
            return Created(id=self.insert(db, request).id)

        with anyio.CancelScope(shield=True):  # a devbox that is in the store must be booted
            answer, is_new = await self._store.once(key, Created, insert)
            if is_new:
                self.boot_soon(answer.id)
        return await self.retrieve(answer.id)

    def boot_soon(self, devbox_id: str, prepare: Prepare | None = None) -> None:
        """Boot a devbox whose insertion is committed, from what `prepare` says, else from its blueprint, else bare."""
        now = time.monotonic()
        with self._orders_lock:
            order = self._orders.pop(devbox_id, None)
            for identity, other in list(self._orders.items()):
                if other.since > now - FORGET_S:
                    break
                del self._orders[identity]
        if order is None:
            raise InternalError(f"Devbox {devbox_id} was not inserted, or is booted already.")

        live = _Live(id=devbox_id, order=order)
        self.start_soon(self._life, live, prepare)
        self._live[devbox_id] = live

    async def _life(self, live: _Live, prepare: Prepare | None) -> None:
        end = shutdown("api_shutdown", "The service stopped.")
        try:
            with live.scope:
                async with anyio.create_task_group() as helpers:
                    end = await self._boot_and_watch(live, prepare, helpers)
                    helpers.cancel_scope.cancel()
            if live.scope.cancelled_caught:
                end = shutdown("keep_alive_timeout" if live.order.launch.idle is None else "idle")
        finally:
            live.status = end.status
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop, live)
                    tasks.start_soon(self._record_end, live, end)
            live.preparation.held.close()
            self._ended[live.id] = self._live.pop(live.id).status
            live.gone.set()

    async def _boot_and_watch(self, live: _Live, prepare: Prepare | None, helpers: TaskGroup) -> End:
        log = structlog.get_logger().bind(devbox=live.id)
        try:
            boxes = await self._boot(live, prepare, helpers)
        except InstallFailed as error:
            install = live.order.request.install
            return failure("execution_failed", error.message, install=install.key if install else None)
        except BuildFailed as error:
            return replace(failure("execution_failed", error.message), is_of_environment=True)
        except (BoxStartFailed, BoxDied) as error:
            return failure(failure_reason(error.message), error.message)
        except SweepError as error:
            return failure("execution_failed", error.message)
        except Exception as error:  # one devbox's trouble is not the service's
            log.exception("devbox.boot_crashed")
            return failure("execution_failed", f"The devbox could not be prepared: {error!r}")
        log.info("devbox.running")
        how, is_by_agent = await boxes.wait_dead()
        end = failure(failure_reason(how), f"The devbox ended by itself: {how}.")
        return replace(end, is_by_agent=is_by_agent)

    async def _boot(self, live: _Live, prepare: Prepare | None, helpers: TaskGroup) -> Succession:
        request, launch = live.order.request, live.order.launch
        live.helpers = helpers
        prepared = await self._prepared(live, prepare)
        live.preparation.doing = str
        if launch.idle is None:  # from now on: what it waits for, such as an image, is not its own life
            live.scope.deadline = anyio.current_time() + launch.keep_alive
        agents = await self._bootable(live, prepared, launch.resources)
        verifiers = [None if each is None else await self._bootable(live, each, None) for each in prepared.verifiers]
        live.egress = agents.egress
        box = await self._provider.start(agents.spec)
        boxes = live.boxes = Succession(
            provider=self._provider, agents=agents, box=box, folder=self._evidence / live.id, verifiers=verifiers
        )
        if live.egress is not None:
            await helpers.start(self._let_out, live, live.egress, box)

        shown = {
            "isolation": Isolation(self._provider.name),
            "enforced_limits": sorted(box.enforced),
            "network": described(self._network(live, prepared), agents.spec.network),
            "has_one_user": True if box.has_one_user else None,
            "home": box.path(await boxes.find_home()),
            "working_directory": box.path(prepared.working_directory),
            "installed": None if request.install is None else [request.install.key],
        }
        await self._advance(live, DevboxStatus.INITIALIZING, shown)
        await boot.write_mounts(box, {**prepared.files, **request.file_mounts})
        await boot.run_scripts(box, prepared.setup, self.output)
        await boot.run_commands(box, launch.commands, self.output)
        if prepared.healthcheck is not None:
            await boot.wait_healthy(box, prepared.healthcheck, self.output)
        await self._advance(live, DevboxStatus.RUNNING, {})
        if launch.suspends:
            helpers.start_soon(self._suspend_idle, live)
        live.touch()
        return boxes

    def _network(self, live: _Live, prepared: Prepared) -> Network:
        return network_of(prepared, *live.order.policies, self._provider.capabilities)

    async def _bootable(self, live: _Live, prepared: Prepared, resources: Resources | None) -> Bootable:
        """Describe the boxes of one environment of a devbox, with these resources or its own. Raises OSError."""
        network = self._network(live, prepared)
        given = box_network(network, self._provider.capabilities)
        covers = self._covers
        if prepared.image is not None and given is not BoxNetwork.NONE:
            settings = await self._settings(given)
            covers = (*covers, *settings.binds)
            prepared = replace(prepared, environment={**settings.variables, **prepared.environment})
        egress = way_out(network, given, devbox_id=live.id, output=self.output, resolve=self._resolve)
        bootable = Bootable(
            prepared=prepared,
            spec=BoxSpec(
                id=live.id,
                resources=resources or prepared.resources or Resources(),
                network=given,
                working_directory=prepared.working_directory,
                root=prepared.root,
                image=prepared.image,
                user=prepared.agent_user,
                binds=(*prepared.binds, *covers),
            ),
            covers=covers,
            egress=egress,
            settle_in=partial(boot.settle_in, prepared=prepared, output=self.output),
        )
        variables = {**prepared.secrets, **live.order.request.environment_variables}
        return replace(bootable, spec=replace(bootable.spec, environment=bootable.environment(variables)))

    async def _settings(self, given: BoxNetwork) -> Settings:
        """Read this machine's settings of package managers for boxes with a network, once. Raises OSError."""
        async with self._reading:
            if given not in self._settings_of:
                read = partial(Settings.without_logins, has_machines_network=given is BoxNetwork.HOST)
                self._settings_of[given] = await anyio.to_thread.run_sync(read, self._state / f"settings-{given}")
            return self._settings_of[given]

    async def _prepared(self, live: _Live, prepare: Prepare | None) -> Prepared:
        """Make what the devbox starts from, with what the request wants installed. Raises InstallFailed."""
        request = live.order.request
        install, blueprint_id, snapshot_id = request.install, request.blueprint_id, request.snapshot_id
        if prepare is not None:
            prepared = await prepare(live.preparation)
        else:
            prepared = Prepared() if blueprint_id is None else await self._blueprints(blueprint_id, live.preparation)
            if snapshot_id is not None and self._snapshots is not None:
                prepared = await self._snapshots(snapshot_id, live.preparation)
        if install is None or self._installs is None:
            return prepared

        async def tell(message: str) -> None:
            said = LogEntry(level="info", source="setup_commands", timestamp_ms=now_ms(), message=message)
            await anyio.to_thread.run_sync(append_setup, self.output, live.id, [said])

        return await self._installs.add(install, prepared, start_soon=self.start_soon, tell=tell)

    async def _advance(self, live: _Live, status: DevboxStatus, shown: Mapping[str, Any]) -> None:
        """Record the next status; a devbox that was shut down meanwhile is not booted further."""
        if live.status not in DEVBOX_DEAD:
            live.status = status  # who reads the row comes before this task goes on
        devbox = await self._rows.advance(live.id, status, shown)
        live.status = devbox.status
        self._changes.announce(live.id)
        if devbox.is_ended:
            live.scope.cancel()
            await anyio.lowlevel.checkpoint()

    async def _stop(self, live: _Live) -> None:
        if live.boxes is None:
            return
        try:
            await live.boxes.stop()  # each box bounds its own end
            await anyio.to_thread.run_sync(remove, self._asleep / live.id)
        except Exception:  # noqa: BLE001 - one devbox's trouble is not the service's
            structlog.get_logger().exception("devbox.stop_crashed", devbox=live.id)

    async def _record_end(self, live: _Live, end: End) -> None:
        """Record an end: a full disk must not leave a devbox that looks alive. A closing service gives up."""
        record = partial(self._rows.end, live.id, end, {} if live.egress is None else live.egress.counters.document())
        with suppress(Unwritable):
            devbox = await insist(record, is_over=lambda: self._tasks is None)
            live.status = devbox.status
            self._changes.announce(live.id)
            about = {"status": devbox.status, "reason": devbox.end_reason, "message": devbox.end_message}
            structlog.get_logger().info("devbox.ended", devbox=live.id, **about)

    async def retrieve(self, devbox_id: str) -> DevboxRecord:
        """Raises NotFound."""
        completed = self._completing()
        return completed(await self._store.read(partial(DEVBOXES.get, identity=devbox_id)))

    async def page(self, query: ListQuery, statuses: Sequence[str] | None) -> Page[DevboxRecord]:
        completed = self._completing()
        page = await self._store.read(lambda db: DEVBOXES.page(db, {"status": statuses}, query))
        return replace(page, items=list(map(completed, page.items)))

    def _completing(self) -> Callable[[DevboxRecord], DevboxRecord]:
        """Make a function that adds to a devbox that lives now what its record does not have yet."""
        living = self._live.copy()
        return lambda devbox: replaced(devbox, **living[devbox.id].shown) if devbox.id in living else devbox

    async def update(self, devbox_id: str, changes: Mapping[str, Any]) -> DevboxRecord:
        """Replace the fields given (`name`, `metadata`). Raises NotFound."""
        return await self._store.write(lambda db: DEVBOXES.update(db, devbox_id, changes))

    async def wait_for_status(self, devbox_id: str, statuses: Collection[str], timeout: float) -> DevboxRecord:
        """Wait, at most `timeout` seconds, until a devbox is in one of the statuses.

        Raises WaitExpired naming the status it is in, and NotFound.
        """
        event = self._changes.next(devbox_id)
        devbox = await self.retrieve(devbox_id)
        with anyio.move_on_after(timeout):
            while devbox.status not in statuses:
                await event.wait()
                event = self._changes.next(devbox_id)
                devbox = await self.retrieve(devbox_id)
        if devbox.status in statuses:
            return devbox
        wanted = ", ".join(sorted(statuses))
        raise WaitExpired(f"Devbox {devbox_id} is {devbox.status} after {timeout:g} s, not yet: {wanted}.")

    @contextmanager
    def using(self, devbox_id: str) -> Iterator[Box]:
        """Use the box that stands for a running devbox, which is not idle meanwhile. Raises as `boxes`."""
        with self.boxes(devbox_id) as boxes:
            yield boxes.front

    @contextmanager
    def boxes(self, devbox_id: str) -> Iterator[Succession]:
        """Use all the boxes of a running devbox, which is not idle meanwhile.

        Raises BadRequest naming the state of one that does not run, and NotFound.
        """
        live = self._running(devbox_id)
        assert live.boxes is not None
        live.users += 1
        live.touch()
        try:
            yield live.boxes
        finally:
            live.users -= 1
            live.touch()

    def working_directory(self, devbox_id: str) -> str | None:
        """Return the folder in which commands run in a devbox, whichever box stands for it; None where it is gone."""
        live = self._live.get(devbox_id)
        return live.boxes.working_directory if live is not None and live.boxes is not None else None

    def touch(self, devbox_id: str) -> None:
        """Start the idle time again. Raises like `box`."""
        self._running(devbox_id).touch()

    def _running(self, devbox_id: str) -> _Live:
        live = self._live.get(devbox_id)
        if live is not None and live.status == DevboxStatus.RUNNING:
            return live
        status = live.status if live is not None else self._ended.get(devbox_id)
        if status is None:
            raise NotFound(f"There is no devbox with id {devbox_id!r}.")
        raise states.not_running(devbox_id, status)

    async def suspend(self, devbox_id: str) -> DevboxRecord:
        """Freeze what runs in a devbox; after a while it is ended, and the files are kept. Idempotent.

        Raises BadRequest for one that does not run or that scorers may judge, and NotFound.
        """
        live = self._live.get(devbox_id)
        if live is None or live.status is not DevboxStatus.SUSPENDED:
            live = self._running(devbox_id)
            await self._suspend(live)
        return await self.retrieve(devbox_id)

    async def _suspend(self, live: _Live) -> None:
        async with live.moving:
            boxes, helpers = self._running(live.id).boxes, live.helpers
            assert boxes is not None
            assert helpers is not None
            if live.order.request.initiator_type == "scenario":
                raise BadRequest(
                    f"Devbox {live.id}: it belongs to a scenario run, and what is judged is not suspended."
                )
            with anyio.CancelScope(shield=True):
                live.scope.deadline = live.idle.deadline = float("inf")
                await insist(partial(self._advance, live, DevboxStatus.SUSPENDING, {}))
                await boxes.suspend()
                await insist(partial(self._advance, live, DevboxStatus.SUSPENDED, {}))
            if live.status is DevboxStatus.SUSPENDED:  # and not ended meanwhile
                live.suspensions += 1
                helpers.start_soon(self._end_frozen, live, live.suspensions)

    async def _suspend_idle(self, live: _Live) -> None:
        """Suspend a devbox whenever it has been idle for long enough."""
        while True:
            with anyio.CancelScope(deadline=live.idle.deadline) as live.idle:
                await anyio.sleep_forever()
            if live.users:  # it was begun to be used just now
                live.touch()
                continue
            try:
                await self._suspend(live)
            except BadRequest:  # it does not run, or it is to be judged
                live.idle.deadline = float("inf")

    async def _end_frozen(self, live: _Live, suspension: int) -> None:
        """End what is frozen in a suspended devbox after a while, and keep its files."""
        await anyio.sleep(FROZEN_S)
        async with live.moving:
            if live.status is DevboxStatus.SUSPENDED and live.suspensions == suspension and live.boxes is not None:
                place = self._asleep / live.id / str(suspension)
                log = structlog.get_logger().bind(devbox=live.id)
                with anyio.CancelScope(shield=True):
                    try:
                        await anyio.to_thread.run_sync(partial(place.mkdir, mode=0o700, parents=True))
                        await live.boxes.sleep(place / "fs")
                    except (BoxDied, OSError) as error:  # it stays frozen, or who watches it sees its end
                        log.warning("devbox.restless", error=str(error))
                        return
                    live.is_asleep = True
                    live.way_out.cancel()
                    log.info("devbox.asleep")

    async def resume(self, devbox_id: str) -> DevboxRecord:
        """Let a suspended devbox go on, in a new box over its files where what ran was ended. Idempotent.

        Raises BadRequest for one that is not suspended, BoxStartFailed, and NotFound.
        """
        live = self._live.get(devbox_id)
        if live is None or live.status is not DevboxStatus.SUSPENDED:
            self._running(devbox_id)
            return await self.retrieve(devbox_id)
        async with live.moving:
            if live.status is DevboxStatus.SUSPENDED:
                assert live.boxes is not None
                with anyio.CancelScope(shield=True):
                    await insist(partial(self._advance, live, DevboxStatus.RESUMING, {}))
                    try:
                        if live.is_asleep:
                            await self._wake(live, live.boxes)
                        await live.boxes.resume()
                        if live.is_new:
                            await boot.run_commands(live.boxes.agents, live.order.launch.commands, self.output)
                            live.is_new = False
                    except (ServiceError, OSError):
                        if not live.is_asleep:
                            await live.boxes.suspend()
                            live.suspensions += 1
                            assert live.helpers is not None
                            live.helpers.start_soon(self._end_frozen, live, live.suspensions)
                        await insist(partial(self._advance, live, DevboxStatus.SUSPENDED, {}))
                        raise
                    await insist(partial(self._advance, live, DevboxStatus.RUNNING, {}))
                live.touch()
                if live.order.launch.idle is None:
                    live.scope.deadline = anyio.current_time() + live.order.launch.keep_alive
        return await self.retrieve(devbox_id)

    async def _wake(self, live: _Live, boxes: Succession) -> None:
        """Boot a box over the files that were kept. Raises BoxStartFailed, BoxDied and BadRequest."""
        files, spec = self._asleep / live.id / str(live.suspensions) / "fs", boxes.spec
        if spec.image is None:
            spec = replace(spec, root=files)
        else:
            spec = replace(spec, root=None, image=replace(spec.image, layers=(*spec.image.layers, files)))
        box = await boxes.wake(spec)
        live.is_asleep, live.is_new = False, True
        if spec.image is None:
            await anyio.to_thread.run_sync(remove, files)
        if live.egress is not None and live.helpers is not None:
            await live.helpers.start(self._let_out, live, live.egress, box)

    async def begin_step(self, devbox_id: str, start: StepStart, *, is_first: bool) -> None:
        """Make a devbox ready for an agent's next step, in a box where nothing of the last one runs or can be read.

        What its agent left listening goes on. Raises as `boxes`, BadRequest saying what failed, BoxStartFailed and
        BoxDied.
        """
        live = self._running(devbox_id)
        with self.boxes(devbox_id) as boxes:
            if not is_first:
                with anyio.CancelScope(shield=True):
                    last, box = boxes.agents, await boxes.go_on()
                    if box is not last and live.egress is not None and live.helpers is not None:
                        live.way_out.cancel()
                        await live.helpers.start(self._let_out, live, live.egress, box)
                await boot.clear_last_step(box, boxes.home)
            await boot.begin_step(boxes.agents, start, boxes.working_directory, self.output)

    async def can_begin(self, devbox_id: str, starts: Sequence[StepStart]) -> bool:
        """Tell whether steps begin, one after the other, where no agent has worked: in a new box of the environment.

        Raises as `boxes`, BoxStartFailed and BoxDied.
        """
        with self.boxes(devbox_id) as boxes:
            async with boxes.unspoilt() as box:
                try:
                    for start in starts:
                        await boot.begin_step(box, start, boxes.working_directory, self.output)
                except BadRequest:
                    return False
        return True

    @staticmethod
    async def _let_out(
        live: _Live, egress: Egress, box: Box, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the way out of one box of a devbox, until that falls asleep or ends."""
        with anyio.CancelScope() as live.way_out:
            await egress.serve(box, task_status=task_status)

    async def shutdown(self, devbox_id: str, reason: str = "api_shutdown", *, is_forced: bool = True) -> DevboxRecord:
        """End a devbox and wait until nothing of it is left. Idempotent.

        Raises NotFound, and unless it `is_forced` Conflict while a snapshot of it is taken.
        """

        def end(db: sqlite3.Connection) -> None:
            taken = {"source_devbox_id": devbox_id, "_status": SnapshotStatus.IN_PROGRESS}
            if not is_forced and SNAPSHOTS.count(db, taken):
                raise Conflict(f"A snapshot of devbox {devbox_id} is being taken; wait for it, or use force.")
            self.shutdown_in(db, devbox_id, reason)

        with anyio.CancelScope(shield=True):
            await self._store.write(end)
            self.shutdown_soon(devbox_id)
        live = self._live.get(devbox_id)
        if live is not None:
            with anyio.move_on_after(STOP_TIMEOUT_S):
                await live.gone.wait()
        return await self.retrieve(devbox_id)

    def shutdown_in(self, db: sqlite3.Connection, devbox_id: str, reason: str) -> None:
        """End a devbox in the caller's transaction; `shutdown_soon` it after the commit. Raises NotFound."""
        self._rows.end_in(db, devbox_id, shutdown(reason))

    def shutdown_soon(self, devbox_id: str) -> None:
        """Stop the box of a devbox that `shutdown_in` has ended, and wake who waits for it."""
        live = self._live.get(devbox_id)
        if live is not None:
            if live.status not in DEVBOX_DEAD:
                live.status = DevboxStatus.SHUTDOWN
            live.scope.cancel()
        self._changes.announce(devbox_id)
