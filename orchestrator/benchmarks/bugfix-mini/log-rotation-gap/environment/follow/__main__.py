"""The command line."""

import argparse

from .follower import Follower


def main():
    parser = argparse.ArgumentParser(prog="follow")
    parser.add_argument("log")
    parser.add_argument("--state")
    options = parser.parse_args()
    follower = Follower(options.log, options.state)
    for line in follower.poll():
        print(line)
    follower.close()


if __name__ == "__main__":
    main()
