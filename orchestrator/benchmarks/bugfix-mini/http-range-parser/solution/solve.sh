#!/bin/bash
set -euo pipefail
cp /solution/httprange/*.py httprange/
