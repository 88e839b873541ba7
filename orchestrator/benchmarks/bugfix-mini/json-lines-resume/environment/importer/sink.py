"""The CSV file the records go to."""

import csv
from pathlib import Path

from importer.records import Record


class Sink:
    """Appends records; they are in the file once it was closed."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8", newline="")
        self.rows = csv.writer(self.file, lineterminator="\n")

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: Record) -> None:
        self.rows.writerow([record.id, record.user, record.amount])
