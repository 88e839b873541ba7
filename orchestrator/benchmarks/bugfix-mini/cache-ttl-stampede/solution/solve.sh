#!/bin/bash
set -eu
cp /solution/fixed/entry.py ratecache/entry.py
cp /solution/fixed/cache.py ratecache/cache.py
