#!/bin/bash
set -euo pipefail
cp /solution/tinytpl/*.py tinytpl/
