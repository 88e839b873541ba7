#!/bin/bash
set -euo pipefail
cp /solution/billing/schedule.py billing/schedule.py
