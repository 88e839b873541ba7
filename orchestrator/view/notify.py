"""Notifications: their content, and the ways on which they leave.

A notifier never holds up a sweep. Each has a task of its own, each delivery a time limit, and what blocks runs in a
thread that is left behind when its time is over. The first failure of a notifier is told, in one line.

An address is a secret: who knows it can write to people. So addresses are in no file of ours, and in no argument of a
process that we start; what a notifier says of a failure is told without them.
"""

import logging
import os
import re
import shlex
import signal
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, Final, Protocol

import anyio
import orjson
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from orchestrator.common.plugins import PlugIn, PlugInGroup, plug_ins
from orchestrator.core.errors import SweepError, UsageError, WorldError
from orchestrator.core.ledger import Ledger
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, shortened
from orchestrator.core.records import Outcome
from orchestrator.rundir.files import REPORT
from orchestrator.view.alerts import Alert, AlertKind
from orchestrator.view.report import ArmSummary, Finding, amount, number, report, span

#: The version of the keys of a notification.
SCHEMA: Final = 1
#: The variable with addresses and commands, one a line.
VARIABLE: Final = "SWEEP_NOTIFY"
#: The time for one delivery.
DELIVERY_S: Final = 30.0
#: Notifications that wait for a slow notifier; more are left out.
WAITING: Final = 64
#: Failures that a notification lists, and characters of an error.
LISTED: Final = 5
LONGEST: Final = 200
#: Characters of what is in a variable and is no address, from which on it is a secret too.
SECRET_LENGTH: Final = 12
#: Characters of a part of an address that may be a key.
KEY_LENGTH: Final = 6
_NAMED: Final = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")
_WORD: Final = re.compile(r"\w+")
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_FAILURES: Final = frozenset({AlertKind.STOPPED, AlertKind.FAILING})
_ENDS: Final = frozenset({AlertKind.ENDED, AlertKind.STOPPED})
_WARNINGS: Final = frozenset({AlertKind.WORSE, AlertKind.SLOWER, AlertKind.BUDGET, AlertKind.DISK})
_APPRISE: Final = "An address needs Apprise, which is not installed: pip install 'sweep-orchestrator[notify]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The sweep that a notification is about; `id` is its own, and `folder` its run folder."""

    id: str
    name: str
    folder: str
    benchmark: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What is told. `as_record` has it as a dict: the JSON that notifiers get.

    `title` and `text` are for people. `reason` says why a sweep stopped, or what is wrong. The numbers are of trials:
    `left` have no result yet. `failures` are the most frequent ones. `command` shows more, and so does the `link` to
    the report that every end leaves. `sweep` is None in a test without a sweep.
    """

    kind: AlertKind
    title: str
    text: str
    time: str
    reason: str | None = None
    sweep: Subject | None = None
    planned: int = 0
    scored: int = 0
    failed: int = 0
    left: int = 0
    arms: Sequence[ArmSummary] = ()
    failures: Sequence[Finding] = ()
    command: str | None = None
    link: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Return plain objects, as `sweep docs notifications` has them."""
        return {"schema": SCHEMA, **asdict(self)}


def compose(alert: Alert, *, sweep: str, folder: Path, ledger: Ledger, plan: Plan) -> Notification:
    """Make the notification of an alert, with the summary of the sweep so far; `sweep` is its id."""
    whole = report(ledger, plan, folder)
    scored, failed = (
        sum(outcome is trial.outcome for key, trial in ledger.trials.items() if key in plan)
        for outcome in (Outcome.SCORED, Outcome.FAILED)
    )
    place = folder.resolve()
    command = f"sweep show {shlex.quote(str(place))}"
    lines = [
        f"{each.arm}: mean {number(each.mean)} ({span(each.low, each.high)}), {each.scored} of {each.planned} scored"
        + (f", {each.failed} failed" if each.failed else "")
        + (f", {each.flagged} flagged" if each.flagged else "")
        + (f", ${each.cost:,.2f}" if each.cost is not None else "")
        + (f", {amount(each.tokens)} tokens" if each.tokens else "")
        for each in whole.arms
    ]
    failures = whole.failures[:LISTED]
    listed = [f"{each.count} x {shortened(f'{each.kind}: {each.words}', LONGEST)}" for each in failures]
    done = f"{scored + failed} of {counted(len(plan), 'trial')} done"
    link = (place / REPORT).as_uri() if alert.kind in _ENDS else None
    return Notification(
        kind=alert.kind,
        title=f"{place.name}: {alert.kind.meaning}",
        text="\n".join(filter(None, [alert.words, f"{done}.", *lines, *listed, command, link])),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=alert.words or None,
        sweep=Subject(id=sweep, name=place.name, folder=str(place), benchmark=plan.benchmark, host=os.uname().nodename),
        planned=len(plan),
        scored=scored,
        failed=failed,
        left=len(plan) - scored - failed,
        arms=whole.arms,
        failures=failures,
        command=command,
        link=link,
    )


class Notifier(Protocol):
    """One way on which notifications leave; `label` names it without its address, which is among its `secrets`."""

    @property
    def label(self) -> str: ...

    @property
    def secrets(self) -> Sequence[str]: ...

    async def send(self, record: Mapping[str, Any]) -> None:
        """Deliver a notification, and return when it is. Raises SweepError that says why it is not.

        What it has begun is ended, or left behind, if it is canceled.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandNotifier:
    """A command of the user's shell, which reads the notification as JSON from its standard input.

    The shell has the command from a variable: `ps` shows arguments to everybody.
    """

    label: str
    secrets: Sequence[str]
    command: str
    environment: Mapping[str, str]

    async def send(self, record: Mapping[str, Any]) -> None:
        """See the protocol."""
        with TemporaryFile() as given, TemporaryFile() as said:
            given.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))
            given.seek(0)
            process = await anyio.open_process(
                ["/bin/sh", "-c", f'command=${VARIABLE}_COMMAND; unset {VARIABLE}_COMMAND; eval "$command"'],
                stdin=given,
                stdout=said,
                stderr=said,
                env={**self.environment, f"{VARIABLE}_COMMAND": self.command},
                start_new_session=True,
            )
            try:
                status = await process.wait()
            except anyio.get_cancelled_exc_class():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with anyio.CancelScope(shield=True):
                    await process.wait()
                raise
            if status:
                said.seek(0)
                words = said.read(1 << 16).decode("utf-8", "replace").strip()
                how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
                raise WorldError(how + (f": {words}" if words else ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressNotifier:
    """An address that Apprise writes to."""

    label: str
    address: str

    @property
    def secrets(self) -> Sequence[str]:
        return [self.address]

    def check(self) -> None:
        """Raise UsageError if Apprise is missing, or does not know such an address."""
        try:
            import apprise
        except ModuleNotFoundError:
            raise UsageError(f"{self.label}: {_APPRISE}.") from None
        with apprise.LogCapture(level=logging.CRITICAL):  # type: ignore[no-untyped-call]
            if apprise.Apprise.instantiate(self.address) is None:
                raise UsageError(f"{self.label}: Apprise knows no such address; its manual lists their forms.")

    async def send(self, record: Mapping[str, Any]) -> None:
        """See the protocol."""
        await in_thread(partial(self._send, record))

    def _send(self, record: Mapping[str, Any]) -> None:
        import apprise

        kind = record["kind"]
        mood = "failure" if kind in _FAILURES else "warning" if kind in _WARNINGS else "info"
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
            mailer = apprise.Apprise()
            if not mailer.add(self.address) or not mailer.notify(
                title=record["title"],
                body=record["text"],
                body_format=apprise.NotifyFormat.TEXT,  # it is no markup, whatever an agent has written
                notify_type=apprise.NotifyType(mood),
            ):
                raise WorldError(said.getvalue().strip() or "it was not delivered")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedNotifier:
    """A notifier of an installed package: a function of the notification and of the text after its name."""

    label: str
    secrets: Sequence[str]
    plug_in: PlugIn
    argument: str

    async def send(self, record: Mapping[str, Any]) -> None:
        """See the protocol."""
        await in_thread(partial(self._send, record))

    def _send(self, record: Mapping[str, Any]) -> None:
        notify = self.plug_in.load()
        with self.plug_in.blamed():
            notify(dict(record), self.argument)


def is_address(words: str) -> bool:
    return _ADDRESS.match(words.strip()) is not None


def refuse_typed(words: Iterable[str], option: str) -> None:
    """Raise UsageError for an address that was typed: the shell's history keeps it, and `ps` shows it to everybody."""
    if any(map(is_address, words)):
        raise UsageError(
            f"{option}: an address is a secret, and `ps` shows what is typed. Put it in the variable {VARIABLE}, in an "
            f"--env-file, or in another variable: {option} '$NAME'."
        )


def notifiers_of(targets: Sequence[str], environ: Mapping[str, str], hidden: Collection[str] = ()) -> list[Notifier]:
    """Make the notifiers of the targets, and of those in the variable SWEEP_NOTIFY. `environ` has variables.

    A target is a shell command, an address of Apprise's, a plug-in as NAME:TEXT, or a variable that has one of these;
    an address may have variables in it. A command gets the variables, of those that are `hidden` the ones that it
    names. Raises UsageError for a target that cannot work, without repeating it.
    """
    found: list[Notifier] = []
    plugged = plug_ins(PlugInGroup.NOTIFIERS) if targets or environ.get(VARIABLE) else {}
    lines = map(str.strip, environ.get(VARIABLE, "").splitlines())
    inherited = [line for line in lines if line and not line.startswith("#")]
    for position, target in enumerate([*targets, *inherited], start=1):
        label = f"notifier {position}"
        words = target.strip()
        is_hidden = position > len(targets) or _NAMED.fullmatch(words) is not None
        if _NAMED.fullmatch(words):
            words = _expanded(words, environ, label).strip()
        secrets = _ADDRESS.findall(words) + ([words] if is_hidden and len(words) >= SECRET_LENGTH else [])
        name, colon, argument = words.partition(":")
        if not words:
            raise UsageError(f"{label} is empty: give a command, an address, or a plug-in's NAME:TEXT.")
        if is_address(words):
            label = f"{label} ({words.partition(':')[0]})"
            address = AddressNotifier(label=label, address=_expanded(words, environ, label))
            address.check()
            found.append(address)
        elif colon and name in plugged:
            label = f"{label} ({name})"
            found.append(PluggedNotifier(label=label, secrets=secrets, plug_in=plugged[name], argument=argument))
        else:
            label = f"{label} (a command)"
            left_out = {VARIABLE} | {*hidden} - {*_WORD.findall(words)}
            environment = {name: value for name, value in environ.items() if name not in left_out}
            found.append(CommandNotifier(label=label, secrets=secrets, command=words, environment=environment))
    return found


def _expanded(words: str, environ: Mapping[str, str], label: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        if not environ.get(name):
            raise UsageError(f"{label}: there is no variable {name}. Set it, or put it in an --env-file.")
        return environ[name]

    return _NAMED.sub(value, words)


def keys_in(address: str) -> list[str]:
    """List the parts of an address that may be keys, for masking in what is said of its failure."""
    parts = re.split(r"[^\w.+-]+", address.partition("://")[2] or address)
    return [part for part in parts if len(part) >= KEY_LENGTH]


class Notifications:
    """Delivers notifications, each notifier by itself.

    `mask` masks what must not leave; `say` prints a line. Use `async with notifications.delivering()`.
    """

    def __init__(
        self, notifiers: Sequence[Notifier], *, mask: Callable[[Any], Any], say: Callable[[str], None]
    ) -> None:
        self._notifiers = notifiers
        self._mask = mask
        self._say = say
        self._streams = [anyio.create_memory_object_stream[Mapping[str, Any]](WAITING) for _ in notifiers]
        self._faulty = set[str]()

    def tell(self, notification: Notification) -> None:
        """Have a notification delivered. Does not wait."""
        record = self._mask(notification.as_record())
        structlog.get_logger().info("notify", kind=notification.kind, title=notification.title)
        for send, _ in self._streams:
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
                send.send_nowait(record)

    @asynccontextmanager
    async def delivering(self, patience: Callable[[], float]) -> AsyncIterator[None]:
        """Inside, deliver; at the end what is under way has so many seconds left."""
        scopes = [anyio.CancelScope(shield=True) for _ in self._notifiers]  # the end is told also when we are canceled

        async def serve(
            notifier: Notifier, records: MemoryObjectReceiveStream[Mapping[str, Any]], scope: anyio.CancelScope
        ) -> None:
            with scope:
                async with records:
                    async for record in records:
                        await self._deliver(notifier, record)

        async with anyio.create_task_group() as tasks:
            for notifier, (_, receive), scope in zip(self._notifiers, self._streams, scopes, strict=True):
                tasks.start_soon(serve, notifier, receive, scope)
            try:
                yield
            finally:
                for (send, _), scope in zip(self._streams, scopes, strict=True):
                    send.close()
                    scope.deadline = anyio.current_time() + patience()

    async def _deliver(self, notifier: Notifier, record: Mapping[str, Any]) -> None:
        why = await failure_of(notifier, record, self._mask)
        if why is None or notifier.label in self._faulty:
            return
        self._faulty.add(notifier.label)
        structlog.get_logger().warning("notify.failed", notifier=notifier.label, error=why)
        self._say(f"{notifier.label} failed: {why}. More of its failures are not told.")


async def failure_of(notifier: Notifier, record: Mapping[str, Any], mask: Callable[[Any], Any]) -> str | None:
    """Deliver a notification within its time; returns why it could not be, or None.

    Secrets are masked in that, and what may be a key in the notifier's address.
    """
    try:
        with anyio.fail_after(DELIVERY_S):
            await notifier.send(record)
    except TimeoutError:
        return f"it took longer than {DELIVERY_S:g} s"
    except SweepError as error:
        message = error.message
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no affair of the sweep's
        message = f"{type(error).__name__}: {error}"
    else:
        return None
    text = str(mask(message)).rstrip(". \n")
    for key in sorted((key for each in notifier.secrets for key in keys_in(each)), key=len, reverse=True):
        text = text.replace(key, "*" * len(key))
    return shortened(text, LONGEST)


async def in_thread(call: Callable[[], object]) -> None:
    """Call in a thread that keeps no process from ending, and is left behind when this is canceled."""
    loop, done, failures = get_running_loop(), anyio.Event(), list[Exception]()

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            failures.append(error)
        except BaseException as error:  # noqa: BLE001 - the way out of a process is no way out of a sweep
            failures.append(WorldError(f"it raised {error!r}"))
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    Thread(target=run, name="notifier", daemon=True).start()
    await done.wait()
    if failures:
        raise failures[0]
