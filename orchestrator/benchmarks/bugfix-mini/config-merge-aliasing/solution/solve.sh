#!/bin/bash
set -eu
cp /solution/fixed/merge.py app/merge.py
cp /solution/fixed/settings.py app/settings.py
