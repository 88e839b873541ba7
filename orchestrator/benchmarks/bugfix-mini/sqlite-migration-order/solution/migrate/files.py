"""The migrations in a folder."""

import re
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"(\d+)-.+\.sql")


class MigrationError(Exception):
    """The message says which file, and what is wrong."""


@dataclass(frozen=True)
class Migration:
    version: int
    path: Path

    @property
    def file(self) -> str:
        return self.path.name


def find_migrations(folder: Path) -> list[Migration]:
    """The migrations of the folder in the order they are applied in."""
    found: dict[int, Migration] = {}
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if not match:
            continue
        migration = Migration(int(match[1]), path)
        if migration.version in found:
            raise MigrationError(f"{path.name}: has the number of {found[migration.version].file}")
        found[migration.version] = migration
    return [found[version] for version in sorted(found)]
