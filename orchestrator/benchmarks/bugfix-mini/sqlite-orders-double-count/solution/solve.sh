#!/bin/bash
set -eu
cp /solution/fixed/reports.py shop/reports.py
