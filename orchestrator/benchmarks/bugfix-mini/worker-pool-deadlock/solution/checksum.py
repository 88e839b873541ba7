"""Prints the SHA-256 of files, several at a time. Usage: checksum.py FILE..."""

import hashlib
import sys
from pathlib import Path

from pool import Pool


def checksum(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def main(names: list[str]) -> int:
    with Pool() as pool:
        for name in names:
            pool.submit(checksum, name)
    status = 0
    for name, result in zip(names, pool.results()):
        if result.error is not None:
            print(f"checksum: {result.error}", file=sys.stderr)
            status = 1
        else:
            print(f"{result.value}  {name}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
