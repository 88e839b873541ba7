#!/bin/bash
set -euo pipefail
cp /solution/cache/*.py cache/
