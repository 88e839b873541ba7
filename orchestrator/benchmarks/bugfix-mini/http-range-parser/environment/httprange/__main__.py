import argparse
import os

from httprange import respond

parser = argparse.ArgumentParser(prog="httprange")
parser.add_argument("header")
parser.add_argument("--size", type=int, required=True)
given = parser.parse_args()
reply = respond(given.header, given.size, int(os.environ.get("RANGE_MAX_PARTS", "5")))
if len(reply.parts) > 1:
    print(reply.status, *(f"{first}-{last}" for first, last in reply.parts))
else:
    print(" ".join([str(reply.status), *([reply.headers["Content-Range"]] if reply.headers else [])]))
