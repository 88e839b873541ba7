import argparse
import sys
from pathlib import Path

from importer.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="importer")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    try:
        imported, problem = run(given.source, given.target, given.state, given.limit)
    except OSError as error:
        print(f"importer: {error}", file=sys.stderr)
        return 1
    print(f"imported {imported}")
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    return 0


sys.exit(main())
