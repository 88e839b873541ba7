#!/bin/bash
set -euo pipefail
cp /solution/deploy.sh deploy.sh
cp /solution/lib/steps.sh lib/steps.sh
