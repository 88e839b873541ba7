#!/bin/bash
# The warehouse database as it is today: the first two migrations applied, and some goods in it.
set -euo pipefail
mkdir -p backup
python3 -B - <<'PY'
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

Path("inventory.db").unlink(missing_ok=True)
with closing(sqlite3.connect("inventory.db")) as db:
    db.execute("CREATE TABLE schema_history (version INTEGER PRIMARY KEY, file TEXT NOT NULL)")
    for version, file in [(1, "1-items.sql"), (2, "2-movements.sql")]:
        db.executescript(Path("migrations", file).read_text())
        db.execute("INSERT INTO schema_history VALUES (?, ?)", (version, file))
    db.executemany(
        "INSERT INTO items (id, name) VALUES (?, ?)",
        [(1, "bolt M6"), (2, "nut M6"), (3, "washer; large"), (4, "bracket")],
    )
    db.executemany(
        "INSERT INTO movements (item, pieces) VALUES (?, ?)",
        [(1, 500), (2, 450), (1, -120), (3, 80), (4, 12), (2, -50)],
    )
    db.commit()
shutil.copy("inventory.db", "backup/inventory.db")
PY
