#!/bin/bash
# fraction: the share of commands that succeed.
#
# $RL_SCORER_CONTEXT is a JSON object:
#   cases     a list of objects, each with
#     name      what it shows
#     run       a command for bash, run in the working directory; $CASE is a fresh folder that holds the files
#     files     optional: names and contents of files put into $CASE
#     status    optional: the exit status that is expected, 0 if missing
#     stdout    optional: the exact standard output that is expected
#     gate      optional: true for a case that earns nothing, but without which the others earn nothing either
#   files     optional: files put into every case's folder
#   timeout   optional: seconds for each command, 20 if missing
#   at_once   optional: how many cases may run at the same time, 1 if missing
#
# Prints one line for each case and score=<0..1> at the end. What the commands print is kept from the output: it could
# look like a score.
exec python3 -I - <<'PYTHON'
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor


def passes(case, shared, seconds):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (shared | case.get("files", {})).items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(content)
        process = subprocess.Popen(
            ["bash", "-c", case["run"]], env=os.environ | {"CASE": folder}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return False
    expected = case.get("stdout")
    return process.returncode == case.get("status", 0) and expected in (None, output.decode("utf-8", "replace"))


def main():
    context = json.loads(os.environ["RL_SCORER_CONTEXT"])
    earned = worth = 0
    gates_open = True
    cases = context["cases"]
    with ThreadPoolExecutor(context.get("at_once", 1)) as pool:
        results = list(pool.map(lambda case: passes(case, context.get("files", {}), context.get("timeout", 20)), cases))
    for case, passed in zip(cases, results):
        print("passed:" if passed else "failed:", case["name"])
        if case.get("gate"):
            gates_open = gates_open and passed
        else:
            worth += 1
            earned += passed
    if not worth:
        sys.exit("fraction: there are no cases that earn something")
    print(f"score={earned / worth if gates_open else 0.0:.6f}")


main()
PYTHON
