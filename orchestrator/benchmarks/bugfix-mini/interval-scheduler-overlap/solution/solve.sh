#!/bin/bash
set -euo pipefail
cp /solution/rooms/interval.py rooms/interval.py
