#!/bin/bash
set -euo pipefail
cp /solution/migrate/*.py migrate/
python3 -m migrate inventory.db migrations
