#!/bin/bash
set -euo pipefail
cp /solution/checksum.py checksum.py
cp /solution/pool/*.py pool/
