#!/bin/bash
set -euo pipefail
cp /solution/wraptext/*.py wraptext/
