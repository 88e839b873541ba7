"""Obeys the orders that a person gives to a running sweep. An order is journaled first, with who gave it and why."""

import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import anyio

from orchestrator.core import orders
from orchestrator.core.config import SweepConfig, changed, seconds
from orchestrator.core.errors import Canceled, InternalError, Requeued, UsageError
from orchestrator.core.events import Event, OrderGiven, TrialReopened
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.core.records import TrialKey
from orchestrator.engine import lifecycle
from orchestrator.engine.budgets import Budgets, deadline_of
from orchestrator.engine.context import Context
from orchestrator.engine.scheduler import Scheduler
from orchestrator.engine.shutdown import Stopping


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Obeys orders, one after the other.

    `chosen` are the trials of the plan that this process runs. `keep` makes changed settings those of a resume, and
    `fit` raises UsageError for settings that this machine has no room for. `tell` gets a sentence for people about each
    order that is obeyed.
    """

    ctx: Context
    plan: Plan
    chosen: Container[TrialKey]
    scheduler: Scheduler
    stopping: Stopping
    budgets: Budgets
    keep: Callable[[SweepConfig], Awaitable[None]]
    fit: Callable[[SweepConfig], None]
    tell: Callable[[str], None]
    _turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def obey(self, order: orders.Order, by: str) -> str:
        """Obey an order of somebody; return what was done. Raises UsageError if it cannot be done."""
        async with self._turn:
            if not self.scheduler.is_feeding or self.stopping.is_draining:
                raise UsageError("It starts nothing new any more: `sweep resume` takes settings, --only and --retry.")
            match order:
                case orders.Set():
                    done = await self._set(order, by)
                case orders.Pause() | orders.Unpause():
                    done = await self._pause(order, by)
                case orders.Cancel():
                    done = await self._cancel(order, by)
                case orders.Requeue():
                    done = await self._requeue(order, by)
                case _:
                    raise InternalError(f"nobody obeys {order}")
        self.tell(f"{done[0].upper()}{done[1:]}, by {_giver(order, by)}.")
        return done

    async def _set(self, order: orders.Set, by: str) -> str:
        if not order.settings:
            raise UsageError("It sets nothing: write KEY=VALUE, for example devboxes=4.")
        config = changed(before := self.budgets.config, self._with_moments(order.settings))
        deadline = deadline_of(config) if config.deadline != before.deadline else self.budgets.deadline
        self.fit(config)
        names = [name.replace("-", "_") for name in order.settings]
        values: dict[str, Any] = {name: getattr(config, name) for name in names}
        words = ", ".join(
            f"{name.replace('_', '-')} {_typed(value)} (was {_typed(getattr(before, name))})"
            for name, value in values.items()
        )
        await self._journal(order, by, f"set {words}", settings=values)
        self.budgets.config, self.budgets.deadline = config, deadline
        self.ctx.limits.change(devboxes=config.devboxes, agents=config.agents)
        if config.rate is not None and config.rate != before.rate:
            self.ctx.endpoint.limit_rate(config.rate)
        self.scheduler.wake()
        self.stopping.check()
        try:
            await self.keep(config)
        except OSError as error:
            words += f"; tell a resume again, because the manifest cannot be written: {error.strerror}"
        return f"set {words}"

    def _with_moments(self, settings: Mapping[str, str]) -> Mapping[str, str]:
        """The settings, with a deadline such as `+2h`, which is later than the one there is, as a moment."""
        later = settings.get("deadline", "")
        if not later.startswith("+"):
            return settings
        try:
            at = (self.budgets.deadline or time.time()) + float(seconds(later[1:]))
            moment = datetime.fromtimestamp(at)  # noqa: DTZ006 - people mean this machine's time
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"deadline={later}: {error}.") from None
        return {**settings, "deadline": moment.isoformat(timespec="seconds")}

    async def _pause(self, order: orders.Pause | orders.Unpause, by: str) -> str:
        is_paused = isinstance(order, orders.Pause)
        paused = self.ctx.ledger.paused
        if is_paused == (paused is not None):
            raise UsageError(f"It is paused already, by {paused.giver}." if paused else "It is not paused.")
        in_flight = len(self.ctx.in_flight)
        going_on = f"{counted(in_flight, 'trial')} in flight {'goes' if in_flight == 1 else 'go'} on"
        words = f"paused; {going_on}" if is_paused else "going on"
        await self._journal(order, by, words)
        self.scheduler.pause(is_paused=is_paused)
        return words

    async def _cancel(self, order: orders.Cancel, by: str) -> str:
        keys = [key for key in order.trials_of(self.plan) if not self.ctx.ledger.is_finished(key)]
        if not keys:
            raise UsageError(f"Every trial of {order.scenario} that you name has its result already.")
        in_flight = sum(key in self.ctx.in_flight for key in keys)
        words = f"canceled {counted(len(keys), 'trial')} of {order.scenario}, {in_flight} of them in flight"
        await self._journal(order, by, words, trials=keys)
        why = Canceled(f"canceled by {_person(order, by)}")
        self._end(keys, why)  # some may have begun, or finished, meanwhile
        waiting = [key for key in keys if key not in self.ctx.in_flight and not self.ctx.ledger.is_finished(key)]
        await lifecycle.give_up(self.ctx, dict.fromkeys(waiting, why))
        self.scheduler.forget(waiting)
        return words

    async def _requeue(self, order: orders.Requeue, by: str) -> str:
        keys, ledger = order.trials_of(self.plan), self.ctx.ledger
        if not all(key in self.chosen for key in keys):
            raise UsageError(
                f"This process was asked for other trials than those of {order.scenario}: run it afterwards."
            )
        finished = [key for key in keys if ledger.is_finished(key)]
        in_flight = [key for key in keys if key in self.ctx.in_flight and key not in finished]
        if unsupported := self.ctx.summary(keys[0]).unsupported:
            raise UsageError(f"{order.scenario} cannot run here: {unsupported}")
        if any(key in self.ctx.in_flight for key in finished):
            raise UsageError("A trial of it has just got its result, and releases its devbox: give the order again.")
        if not finished and not in_flight:
            raise UsageError(f"{order.scenario} waits for its turn already: nothing of it has begun.")
        words = f"requeued {counted(len(finished) + len(in_flight), 'trial')} of {order.scenario}"
        for key in finished:
            self.scheduler.add(key)  # so that the sweep does not end meanwhile
        reopened = [TrialReopened(trial=str(key), kept=ledger.trials[key].kept) for key in finished]
        await self._journal(order, by, words, *reopened, trials=[*finished, *in_flight])
        self._end(in_flight, Requeued(f"requeued by {_person(order, by)}"))
        return words

    def _end(self, keys: Sequence[TrialKey], why: Canceled | Requeued) -> None:
        for key in keys:
            if (flight := self.ctx.in_flight.get(key)) is not None and not self.ctx.ledger.is_finished(key):
                flight.end(why)

    async def _journal(
        self,
        order: orders.Order,
        by: str,
        words: str,
        *following: Event,
        settings: Mapping[str, Any] | None = None,
        trials: Sequence[TrialKey] = (),
    ) -> None:
        """Make an order durable, and in one piece with it what follows from it."""
        given = OrderGiven(
            order=str(type(order).__struct_config__.tag),
            words=words,
            by=by,
            reason=order.reason,
            settings=settings or {},
            trials=tuple(map(str, trials)),
        )
        await self.ctx.sink.append(given, *following)


def _giver(order: orders.Order, by: str) -> str:
    return f"{by}: {order.reason}" if order.reason else by


def _person(order: orders.Order, by: str) -> str:
    """Who gave an order, and why, without the process, which is gone when somebody reads it."""
    return _giver(order, by.partition(" (process ")[0])


def _typed(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
