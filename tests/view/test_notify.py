"""Notifications on their ways: real commands, a real mail server and a real HTTP server, and ways that hang or fail."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from orchestrator.common.plugins import PlugIn, PlugInGroup
from orchestrator.core.errors import UsageError, WorldError
from orchestrator.core.events import StageEntered
from orchestrator.core.ledger import Ledger
from orchestrator.core.stages import Stage
from orchestrator.view import notify
from orchestrator.view.alerts import Alert, AlertKind
from tests.processes import carrying
from tests.receivers import KEY
from tests.receivers import hook as hook  # noqa: PLC0414 - a fixture
from tests.waiting import wait_until

from .conftest import failed, make_plan, scored

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")]


class Mailbox:
    """Takes mail from who knows the password."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(message_from_bytes(envelope.content or b""))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture
def mail() -> Iterator[tuple[str, Mailbox]]:
    """An address of a mail server here, and its mailbox."""
    box = Mailbox()
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=0,
        authenticator=lambda *arguments: AuthResult(success=arguments[-1].password == KEY.encode()),
        auth_require_tls=False,
    )
    with suppress(OSError):  # it asks its own port, which it takes for 0, whether it is there
        controller.start()
    port = cast("Any", controller.server).sockets[0].getsockname()[1]
    yield f"mailto://me:{KEY}@127.0.0.1:{port}?mode=insecure&from=me@example.com&to=you@example.com", box
    controller.stop()


def told(folder: Path) -> notify.Notification:
    """The notification of a sweep of three trials, of which one failed and one runs."""
    ledger, plan = Ledger(), make_plan("one", "two", "three")
    ledger.apply(scored("s0/a/1", 1.0, usage={"cost_usd": 1.25, "input_tokens": 900}))
    ledger.apply(failed("s1/a/1", message=f"no devbox, said {KEY}"))
    ledger.apply(StageEntered(trial="s2/a/1", attempt=1, stage=Stage.START))
    alert = Alert(kind=AlertKind.STOPPED, words="--max-cost 1 is used up.")
    return notify.compose(alert, sweep="the-id", folder=folder, ledger=ledger, plan=plan)


def test_a_notification_says_how_it_stands_and_what_to_type(tmp_path: Path) -> None:
    record = told(tmp_path / "my night").as_record()
    place = f"'{tmp_path}/my night'"
    assert record["title"] == "my night: the sweep has ended, and trials are left"
    assert record["text"].splitlines() == [
        "--max-cost 1 is used up.",
        "2 of 3 trials done.",
        "a: mean 1.000 (0.207 - 1.000), 1 of 3 scored, 1 failed, $1.25, 900 tokens",
        f"1 x DevboxLost: no devbox, said {KEY}",
        f"sweep show {place}",
        (tmp_path / "my night/report.html").as_uri(),
    ]
    assert [record[key] for key in ("schema", "kind", "planned", "scored", "failed", "left")] == [
        1,
        "stopped",
        3,
        1,
        1,
        1,
    ]
    assert record["command"] == f"sweep show {place}"
    assert record["sweep"]["id"] == "the-id"
    assert record["arms"][0]["cost"] == 1.25


async def deliver(
    targets: list[str], environ: dict[str, str], notification: notify.Notification, *, patience: float = 20.0
) -> list[str]:
    """Deliver two notifications, and return what was said of failures."""
    said: list[str] = []
    found = notify.notifiers_of(targets, {"PATH": "/usr/bin:/bin", **environ})
    notifications = notify.Notifications(found, mask=partial(masked, "secret-of-an-agent"), say=said.append)
    async with notifications.delivering(lambda: patience):
        notifications.tell(notification)
        notifications.tell(notification)
    return said


def masked(secret: str, value: Any) -> Any:
    return json.loads(json.dumps(value).replace(secret, "*" * len(secret)))


async def test_commands_mail_and_hooks_get_every_notification_and_a_failure_is_told_once(
    tmp_path: Path, mail: tuple[str, Mailbox], hook: tuple[str, list[tuple[str, Any]]]
) -> None:
    (address, box), (url, posts) = mail, hook
    said = await deliver(
        [
            f"cat >>{tmp_path}/told",
            "$MAIL",
            url.replace(KEY, "${KEY}/refuse"),
            "echo $KEY secret-of-an-agent >&2; exit 3",
        ],
        {"MAIL": address, "KEY": KEY, "SWEEP_NOTIFY": f"{url}\n"},
        told(tmp_path / "night"),
    )
    one, two = map(json.loads, (tmp_path / "told").read_text().splitlines())
    assert one == two
    assert one["title"] == "night: the sweep has ended, and trials are left"
    assert [each["subject"] for each in box.mails] == [one["title"]] * 2
    assert "2 of 3 trials done." in box.mails[0].as_string()
    assert sorted(path for path, _ in posts) == [f"/{KEY}"] * 2 + [f"/{KEY}/refuse"] * 2
    assert posts[0][1]["title"] == one["title"]
    assert (posts[0][1]["message"], posts[0][1]["type"]) == (one["text"], "failure")

    refused, failing = sorted(said)
    assert refused.startswith("notifier 3 (json) failed: ")
    assert KEY not in refused
    assert failing.startswith("notifier 4 (a command) failed: exit status 3: ")
    assert "secret-of-an-agent" not in failing


async def test_the_end_is_told_also_when_the_program_cancels_the_sweep(tmp_path: Path) -> None:
    (found,) = notify.notifiers_of([f"cat >>{tmp_path}/told"], {"PATH": "/usr/bin:/bin"})
    notifications = notify.Notifications([found], mask=lambda record: record, say=print)
    with anyio.CancelScope() as scope:
        async with notifications.delivering(lambda: 20.0):
            try:
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                notifications.tell(told(tmp_path / "night"))
    assert (tmp_path / "told").read_text().count("\n") == 1


async def test_what_hangs_is_left_behind_and_a_commands_processes_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notification, mark = told(tmp_path / "night"), str(tmp_path)
    began = time.monotonic()
    environ = {"E2E_DESK": mark, "SWEEP_NOTIFY": f"sleep 300 & sleep 300\ncat >>{tmp_path}/told"}
    assert await deliver([], environ, notification, patience=0.3) == []
    assert time.monotonic() - began < 5
    assert (tmp_path / "told").read_text().count("\n") == 2
    wait_until(lambda: not carrying(mark), "a process is left")

    monkeypatch.setattr(notify, "DELIVERY_S", 0.2)
    environ = {"E2E_DESK": mark, "SWEEP_NOTIFY": "sleep 300 & sleep 300"}
    (said,) = await deliver([], environ, notification)
    assert said == "notifier 1 (a command) failed: it took longer than 0.2 s. More of its failures are not told."
    wait_until(lambda: not carrying(mark), "a process is left")


async def test_a_command_has_of_the_secrets_only_those_that_it_names(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "MINE": "1", "HOOK": "2", "KEY": "3", "SWEEP_NOTIFY": f"env >{tmp_path}/hers"}
    command = f'test "$HOOK" && env >{tmp_path}/his'
    for each in notify.notifiers_of([command], environ, {"HOOK", "KEY"}):
        await each.send({})
    found = [{*(tmp_path / name).read_text().splitlines()} for name in ("his", "hers")]
    assert [lines & {"MINE=1", "HOOK=2", "KEY=3"} for lines in found] == [{"MINE=1", "HOOK=2"}, {"MINE=1"}]
    assert not any("SWEEP_NOTIFY" in line for lines in found for line in lines)


def test_a_plug_in_takes_over_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("cat", "night_tools:cat", PlugInGroup.NOTIFIERS)
    plug_in = PlugIn(name="cat", module="night_tools", attribute="cat", package="night-tools 1", entry_point=entry)
    monkeypatch.setattr(notify, "plug_ins", lambda _: {"cat": plug_in})
    labels = [each.label for each in notify.notifiers_of(["cat", "cat >told", "cat:me"], {})]
    assert labels == ["notifier 1 (a command)", "notifier 2 (a command)", "notifier 3 (cat)"]


async def test_a_notifier_that_ends_its_process_ends_no_sweep() -> None:
    for way_out in (SystemExit, KeyboardInterrupt):

        def leave(way: type[BaseException] = way_out) -> None:
            raise way(0)

        with pytest.raises(WorldError, match=f"it raised {way_out.__name__}"):
            await notify.in_thread(leave)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("$NOWHERE", "notifier 1: there is no variable NOWHERE. Set it, or put it in an --env-file."),
        ("json://host/$NOWHERE", "notifier 1 (json): there is no variable NOWHERE."),
        ("nonsense://host/KEY", "notifier 1 (nonsense): Apprise knows no such address; its manual lists their forms."),
        (" ", "notifier 1 is empty"),
    ],
)
def test_a_target_that_cannot_work_is_refused_without_being_repeated(target: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        notify.notifiers_of([target.replace("KEY", KEY)], {})
    assert says in refused.value.message
    assert KEY not in refused.value.message


def test_an_address_that_is_typed_is_refused() -> None:
    notify.refuse_typed(["cat", "$HOOK", "curl -d @- https://example.com"], "--notify")
    with pytest.raises(UsageError, match=r"--notify: an address is a secret.*Put it in the variable SWEEP_NOTIFY"):
        notify.refuse_typed(["cat", f"json://host/{KEY}"], "--notify")
