"""Prints a number from 0 to 1: the share of the ticket's behaviours that work, 0 if ordinary following does not.

Every behaviour is a small program in a process and a folder of its own. It has passed when the last line it prints is
the word it was given: what the follower prints itself, or how it ends, can't stand for that.
"""

import os
import secrets
import subprocess
import sys
import tempfile

PRELUDE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from follow import Follower
LOG = os.path.join(os.getcwd(), "app.log")
STATE = os.path.join(os.getcwd(), "app.state")

def append(data, path=LOG):
    with open(path, "ab") as file:
        file.write(data if isinstance(data, bytes) else data.encode())

def rotate():
    os.rename(LOG, LOG + ".1")

def expect(follower, *lines):
    got = follower.poll()
    assert got == list(lines), (got, lines)

def once(*lines):
    follower = Follower(LOG, STATE)
    expect(follower, *lines)
    follower.close()
"""

ORDINARY = """
import json
follower = Follower(LOG, STATE)
expect(follower)
append("one\\n\\ntwo\\n")
expect(follower, "one", "", "two")
expect(follower)
append("dr\u00e9i\\n")
expect(follower, "dr\u00e9i")
follower.close()
follower.close()
append("four\\n")
once("four")
once()
plain = Follower(LOG)
expect(plain, "one", "", "two", "dr\u00e9i", "four")
plain.close()
with open(STATE, "w") as file:
    json.dump({"inode": os.stat(LOG).st_ino, "offset": 9}, file)
once("dr\u00e9i", "four")
open(STATE, "w").close()
once("one", "", "two", "dr\u00e9i", "four")
os.remove(LOG)
once()
"""

BEHAVIOURS = {
    "partial lines": """
follower = Follower(LOG, STATE)
append("one\\ntw")
expect(follower, "one")
expect(follower)
append("o")
expect(follower)
append("\\nthree\\nf")
expect(follower, "two", "three")
append("our\\n")
expect(follower, "four")
""",
    "characters and line ends": """
follower = Follower(LOG, STATE)
letters = "\u65e5\u672c\\n".encode()
append(letters[:2])
expect(follower)
append(letters[2:4])
expect(follower)
append(letters[4:] + b"a\\rb\\x0cc\\r\\n" + "x\u2028y\\n".encode())
expect(follower, "\u65e5\u672c", "a\\rb\\x0cc\\r", "x\u2028y")
append(b"\\xff!\\nnext\\n")
expect(follower, "\\ufffd!", "next")
""",
    "partial lines and restart": """
append("one\\ntw")
once("one")
append("o\\nth")
once("two")
once()
follower = Follower(LOG, STATE)
append("r\u00e9".encode()[:-1])
expect(follower)
follower.close()
append("\u00e9".encode()[-1:] + b"e\\n")
once("thr\u00e9e")
""",
    "lines before the rotation": """
follower = Follower(LOG, STATE)
append("one\\n")
expect(follower, "one")
append("two\\nthree\\n")
rotate()
append("four\\nfi")
expect(follower, "two", "three", "four")
append("ve\\n")
expect(follower, "five")
os.remove(LOG + ".1")
append("six\\n")
rotate()
append("seven\\n")
expect(follower, "six", "seven")
""",
    "end of the old file": """
follower = Follower(LOG, STATE)
append("one\\ntw")
expect(follower, "one")
rotate()
expect(follower)
append("o\\nthree\\nfo", LOG + ".1")
expect(follower, "two", "three")
expect(follower)
append("ur", LOG + ".1")
append("five\\n")
expect(follower, "four", "five")
expect(follower)
os.replace(LOG, LOG + ".1")
append("six\\n")
expect(follower, "six")
""",
    "truncation": """
follower = Follower(LOG, STATE)
append("one\\ntwo\\nthr")
expect(follower, "one", "two")
os.truncate(LOG, 0)
expect(follower)
append("four\\nfi")
expect(follower, "four")
append("ve\\n")
expect(follower, "five")
follower.close()
append("six and more\\n")
once("six and more")
os.truncate(LOG, 0)
append("seven\\n")
once("seven")
""",
    "rotation while nobody runs": """
append("one\\n")
once("one")
append("two\\nthr")
rotate()
append("four\\nfi")
once("two", "thr", "four")
append("ve\\n")
once("five")
append("six\\n")
os.replace(LOG, LOG + ".1")
once("six")
append("seven\\n", LOG + ".1")
once("seven")
append("eight\\n")
once("eight")
""",
    "rotation, then restart": """
append("one\\n")
follower = Follower(LOG, STATE)
expect(follower, "one")
append("tw")
rotate()
append("o", LOG + ".1")
expect(follower)
follower.close()
append("\\nthree\\n", LOG + ".1")
append("four\\n")
once("two", "three", "four")
append("five\\n")
os.replace(LOG, LOG + ".2")
os.remove(LOG + ".1")
append("six\\n")
once("six")
follower = Follower(LOG, STATE)
append("seven\\n")
rotate()
append("eight\\n")
expect(follower, "seven", "eight")
""",
}


def passes(program):
    word = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-B", "-c", PRELUDE + program + "\nprint(); print(sys.argv[2])", os.getcwd(), word]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return False
    if done.returncode:
        print("   ", done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}")
    return done.returncode == 0 and done.stdout.splitlines()[-1:] == [word]


def main():
    passed = 0
    for name, program in BEHAVIOURS.items():
        works = passes(program)
        passed += works
        print("passed:" if works else "failed:", name)
    if not passes(ORDINARY):
        print("failed: ordinary following, so nothing counts")
        passed = 0
    print(passed / len(BEHAVIOURS))


if __name__ == "__main__":
    main()
