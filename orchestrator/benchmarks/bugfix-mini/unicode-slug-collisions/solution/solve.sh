#!/bin/bash
set -eu
cp /solution/fixed/slug.py wiki/slug.py
cp /solution/fixed/pages.py wiki/pages.py
