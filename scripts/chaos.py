"""A night of bad weather: what is lost, doubled, left or wrong when sweeps and their service are killed and stopped at
any moment, disks are slow, strangers answer, readers stop and folders go away, while the service misbehaves. Each sweep
is resumed until it is finished; the same seed has the same weather, though never at quite the same moments.
"""

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.judge import FATAL, Judge
from tests.crash.weather import BETWEEN, KINDS, MET_AT_START, Weather, World

#: The service's own misbehaviour, which lasts all night.
FAULTS: Final = "faults"
#: Seconds from the start of a sweep in which it resumes, and until which the next weather comes at the latest.
RESUMING, LONGEST = 1.5, 7.0
#: Seconds without a new result, and without weather, after which a sweep counts as hung.
HUNG: Final = 300.0
TICK: Final = 0.05
REPORT_EVERY: Final = 10.0
#: Notes of one kind that are shown.
EXAMPLES: Final = 10
#: Unexpected ends of a sweep, after which it is not started again.
PATIENCE: Final = 20
#: Of a hundred sweeps, those that start a service for themselves.
EMBEDDED: Final = 30
TOLD: Final = (
    *(
        "sweeps",
        "embedded",
        "trials",
        "attempts",
        "starts",
        "logs of vanished executions",
        "patches said to be missing",
    ),
)


@dataclass(slots=True)
class Chaos:
    """One run of this script."""

    world: World
    kinds: Sequence[str]
    deadline: float
    embedded: int
    counts: Counter[str] = field(default_factory=Counter)
    weather: Weather = field(init=False)
    judge: Judge = field(init=False)
    reported_at: float = 0.0

    def __post_init__(self) -> None:
        self.weather, self.judge = Weather(self.world, self.counts), Judge(self.counts)

    def run(self) -> None:
        """Sweep after sweep, until the time is up and the last one is finished."""
        self.world.serve()
        number = 0
        while time.monotonic() < self.deadline:
            number += 1
            self.world.is_embedded = self.world.dice.randrange(100) < self.embedded
            self.world.name = f"sweep-{number}"
            self.run_one()

    def run_one(self) -> None:
        """Run a sweep to its end through all that comes until then."""
        world = self.world
        self.counts["sweeps"] += 1
        self.counts["embedded"] += world.is_embedded
        kinds = [kind for kind in self.kinds if not (world.is_embedded and kind in BETWEEN)]
        self.start()
        next_at = self.next_weather()
        done, done_at, patience = 0, time.monotonic(), PATIENCE
        while world.sweep is not None:
            time.sleep(TICK)
            now = time.monotonic()
            self.weather.pass_by(now)
            if now > self.deadline:
                self.weather.clear()
            self.tend_service()
            if world.done != done:
                done, done_at = world.done, now
            self.report(done)
            status = world.sweep.poll()
            if status is not None:
                is_told = status == 2 and not world.has_opened() and not MET_AT_START.isdisjoint(self.weather.lasting)
                world.end_sweep()
                if status == world.expected_status():
                    break
                if is_told:
                    self.counts["starts refused"] += 1
                else:
                    self.note("unexpected ends", f"status {status} after {done} results; see run.log")
                    patience -= 1
                if patience:
                    self.start()
                    next_at = self.next_weather()
            elif kinds and next_at < now < self.deadline:
                self.weather.come(kinds)
                if world.sweep is None:
                    self.start()
                next_at, done_at = self.next_weather(), time.monotonic()
            elif now - done_at > HUNG:
                self.note("sweeps hung", f"no new result since {HUNG:g} s: {done} of {world.trials}")
                world.end_sweep()
        self.weather.clear()
        self.judge.look_at(world)
        self.counts["event loops stuck"] = world.said.count("the event loop has been stuck")

    def start(self) -> None:
        self.counts["starts"] += 1
        self.world.start()

    def note(self, what: str, words: str) -> None:
        self.counts[what] += 1
        self.judge.notes.append(f"{what}: {self.world.name}: {words}")

    def tend_service(self) -> None:
        """A service that has ended by itself is started again, as by whoever looks after it."""
        if self.world.service is not None and self.world.service.poll() is not None:
            self.counts["services started again"] += 1
            self.world.serve()

    def next_weather(self) -> float:
        """When weather comes next: in a third of the cases while the sweep resumes."""
        dice = self.world.dice
        longest = RESUMING if dice.random() < 1 / 3 else LONGEST
        return time.monotonic() + dice.uniform(0, longest)

    def report(self, done: int) -> None:
        if time.monotonic() - self.reported_at < REPORT_EVERY:
            return
        self.reported_at = time.monotonic()
        came = ", ".join(f"{kind} {self.counts[kind]}" for kind in self.kinds)
        left = max(0, int(self.deadline - self.reported_at))
        bad = sum(self.counts[what] for what in FATAL)
        print(f"{left:4} s left · {self.world.name} {done}/{self.world.trials} · {came} · wrong {bad}", flush=True)

    def summary(self) -> bool:
        """Say what happened; whether all is well."""
        notes = self.world.folder / "notes"
        notes.write_text("".join(f"{note}\n" for note in self.judge.notes))
        shown: Counter[str] = Counter()
        for note in self.judge.notes:
            shown[what := note.partition(":")[0]] += 1
            if shown[what] <= EXAMPLES:
                print(f"  {note}")
        if max(shown.values(), default=0) > EXAMPLES:
            print(f"  All {shown.total()} of them are in {notes}.")
        said = {*TOLD, *FATAL}
        came = [f"{what} {count}" for what, count in sorted(self.counts.items()) if what not in said]
        print(f"seed {self.world.seed}: " + ", ".join(f"{what} {self.counts[what]}" for what in TOLD))
        print("weather: " + ", ".join(came))
        print(", ".join(f"{what} {self.counts[what]}" for what in FATAL), flush=True)
        return self.judge.is_content


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no weather comes any more")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    parser.add_argument("--scenarios", type=int, default=100, help="each with two agents")
    parser.add_argument("--devboxes", type=int, default=8)
    parser.add_argument("--embedded", type=int, default=EMBEDDED, metavar="PERCENT",
                        help="of sweeps start a service for themselves: no faults, no proxy")  # fmt: skip
    known = [*KINDS, FAULTS]
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", choices=known, default=known, metavar="KIND", help=f"of {', '.join(known)}")
    which.add_argument("--without", nargs="+", choices=known, default=[], metavar="KIND")
    given = parser.parse_args()
    given.kinds = [kind for kind in known if kind in given.only and kind not in given.without]
    return given


def main() -> int:
    given = parse()
    folder = Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    print(f"seed {given.seed}, in {folder}: {', '.join(given.kinds)}", flush=True)
    world = World(folder, given.seed, given.scenarios, given.devboxes, has_faults=FAULTS in given.kinds)
    if not world.preloaded:
        print("No C compiler here: the service's database is on a quick disk all night.", flush=True)
    kinds = [kind for kind in given.kinds if kind != FAULTS]
    chaos = Chaos(world, kinds, time.monotonic() + 60 * given.minutes, given.embedded)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    is_stopped = False
    try:
        chaos.run()
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        chaos.weather.clear()
        chaos.judge.notes += world.close()
    is_well = chaos.summary()
    if is_well:
        shutil.rmtree(folder)
    return 130 if is_stopped else 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
