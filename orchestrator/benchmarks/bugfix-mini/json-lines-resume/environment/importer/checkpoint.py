"""How far the last run got."""

import json
import os
from pathlib import Path


class Checkpoint:
    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, source: Path) -> int:
        """Where to go on in `source`; its beginning if it was rotated since."""
        try:
            offset = json.loads(self.path.read_text())["offset"]
        except FileNotFoundError:
            return 0
        return offset if offset <= source.stat().st_size else 0

    def save(self, offset: int) -> None:
        """Replaces the file in one step, so that a crash leaves the old or the new one."""
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(json.dumps({"offset": offset}))
        os.replace(fresh, self.path)
