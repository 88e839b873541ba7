"""The benchmark service in the foreground."""

from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from orchestrator.commands import BUNDLED
from orchestrator.common import logging_setup
from orchestrator.common.address import Address
from orchestrator.common.locks import RISK
from orchestrator.core.config import RegistryConfig
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import DiskLimit, Isolation, LockKind, Mirror
from orchestrator.service.assembly import Seams
from orchestrator.service.sandbox.own_ids import become_root
from orchestrator.service.server import serve
from orchestrator.testing.chaos.plug_in import misbehaving
from orchestrator.testing.chaos.rules import read_rules
from orchestrator.testing.strict_compat import strict
from orchestrator.view.console import say


def be_root(state: Path, isolation: Isolation) -> None:
    """Let an ordinary user's service start boxes of images; call it before the process has threads."""
    if isolation is Isolation.LOCAL:
        become_root(state.expanduser().absolute())


async def run(
    *,
    host: str,
    port: int,
    token: str | None,
    state: Path,
    benchmarks: Sequence[Path],
    isolation: Isolation,
    linger: float | None,
    is_foreign: bool,
    chaos: Path | None,
    secret_names: Sequence[str],
    allowed_hosts: Sequence[str],
    lock: LockKind,
    images: RegistryConfig,
    lends_network: bool,
    disk_limit: DiskLimit,
    is_quiet: bool,
) -> None:
    """Serve until a signal, or until no client has asked for `linger` seconds. Raises UsageError."""
    logging_setup.to_stream(level=30 if is_quiet else 20)
    for folder in benchmarks:
        if not folder.is_dir():
            raise UsageError(f"--benchmarks {folder}: there is no such folder.")
    seams = strict(Seams()) if is_foreign else Seams()
    if chaos is not None:
        rules = await anyio.to_thread.run_sync(read_rules, chaos)
        seams = misbehaving(seams, rules)
        words = {"file": str(chaos), "rules": len(rules.rules), "seed": rules.seed}
        structlog.get_logger().warning("chaos.on", **words)
    where = await anyio.to_thread.run_sync(lambda: state.expanduser().resolve())
    async with anyio.create_task_group() as tasks:

        async def listen(*, task_status: TaskStatus[Address]) -> None:
            # Of two benchmarks with one name the first is served: a changed copy of ours must win over ours.
            folders = list(dict.fromkeys((*(folder.resolve() for folder in benchmarks), BUNDLED)))
            await serve(
                host,
                port,
                token,
                where,
                folders,
                isolation,
                linger,
                seams=seams,
                secret_names=secret_names,
                allowed_hosts=allowed_hosts,
                lock=lock,
                mirrors=[Mirror.parse(each) for each in images.registry_mirror],
                image_budget=images.image_cache,
                rebuild=images.rebuild,
                lends_network=lends_network,
                disk_limit=disk_limit,
                task_status=task_status,
            )

        if lock == "none":
            structlog.get_logger().warning("lock.none", risk=RISK.format(where))
        address: Address = await tasks.start(listen)
        if not is_quiet:
            say(f"export RUNLOOP_BASE_URL={address.url} RUNLOOP_API_KEY={address.token}")
