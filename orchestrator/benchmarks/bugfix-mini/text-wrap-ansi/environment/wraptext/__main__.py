import argparse
import sys

from wraptext import wrap

parser = argparse.ArgumentParser(prog="wraptext")
parser.add_argument("--width", type=int, default=80)
given = parser.parse_args()
print("\n".join(wrap(sys.stdin.read().removesuffix("\n"), given.width)))
