#!/bin/bash
set -eu
cp /solution/fixed/client.py feed/client.py
