#!/bin/bash
set -eu
for file in model load totals; do
    cp "/solution/fixed/$file.py" "invoices/$file.py"
done
