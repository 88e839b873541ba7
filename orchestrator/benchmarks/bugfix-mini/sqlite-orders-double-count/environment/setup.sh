#!/bin/bash
set -eu
rm -f shop.db
python3 -m shop.seed shop.db
