#!/bin/bash
# All or nothing: every hidden test passes, or the reward is 0.
mkdir -p /logs/verifier
echo 0 > /logs/verifier/reward.txt
if python3 /tests/hidden_test.py; then
    echo 1 > /logs/verifier/reward.txt
fi
