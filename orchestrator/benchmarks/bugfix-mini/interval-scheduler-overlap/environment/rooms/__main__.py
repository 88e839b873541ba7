import argparse
import json
from datetime import datetime
from pathlib import Path

from rooms import Booking, Calendar, Interval


def read_bookings(path: Path) -> list[Booking]:
    return [
        Booking(
            entry["room"],
            Interval(datetime.fromisoformat(entry["start"]), datetime.fromisoformat(entry["end"])),
            entry["title"],
        )
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="rooms")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("busy", "free"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("room")
    command.add_argument("start", type=datetime.fromisoformat)
    command.add_argument("end", type=datetime.fromisoformat)
    command.add_argument("--minutes", type=int, default=1)
    given = parser.parse_args()

    calendar = Calendar()
    calendar.load(read_bookings(given.file))
    if given.command == "busy":
        times = calendar.busy(given.room)
    else:
        times = calendar.free(given.room, Interval(given.start, given.end), given.minutes)
    for time in times:
        print(f"{time.start:%Y-%m-%d %H:%M} - {time.end:%Y-%m-%d %H:%M}")


main()
