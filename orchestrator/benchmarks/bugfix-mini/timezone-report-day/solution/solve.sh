#!/bin/bash
set -eu
cp /solution/fixed/report.py takings/report.py
