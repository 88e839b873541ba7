#!/bin/bash
set -eu
cp /solution/fixed/service.py stock/service.py
