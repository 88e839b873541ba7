#!/bin/bash
set -eu
cp /solution/fixed/follower.py follow/follower.py
