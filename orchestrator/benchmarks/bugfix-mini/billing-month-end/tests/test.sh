#!/bin/bash
# The hidden tests write the reward at their end; until then it is 0.
mkdir -p /logs/verifier
echo 0 > /logs/verifier/reward.txt
python3 -B /tests/test_month_end.py /logs/verifier/reward.txt
