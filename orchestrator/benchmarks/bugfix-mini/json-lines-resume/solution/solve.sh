#!/bin/bash
set -euo pipefail
cp /solution/importer/*.py importer/
