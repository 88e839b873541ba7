"""What worked before, and how the files of tests ask."""

import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.getcwd())


class Case(unittest.TestCase):
    def setUp(self):
        from httprange import respond

        self.respond = respond

    def ignored(self, *headers):
        for header in headers:
            reply = self.respond(header, 100)
            self.assertEqual((reply.status, list(reply.parts), dict(reply.headers)), (200, [], {}), repr(header))

    def parts(self, header, size=100):
        reply = self.respond(header, size)
        self.assertEqual(reply.status, 206, repr(header))
        parts = [tuple(part) for part in reply.parts]
        headers = {}
        if len(parts) == 1:
            first, last = parts[0]
            headers = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
        self.assertEqual(dict(reply.headers), headers, repr(header))
        return parts

    def unsatisfiable(self, *headers, size=100):
        for header in headers:
            reply = self.respond(header, size)
            found = reply.status, list(reply.parts), dict(reply.headers)
            self.assertEqual(found, (416, [], {"Content-Range": f"bytes */{size}"}), repr(header))

    def command(self, header, size):
        ran = subprocess.run(
            [sys.executable, "-B", "-m", "httprange", header, "--size", str(size)], capture_output=True, text=True
        )
        return ran.stdout


class Kept(Case):
    """Part of every file of tests."""

    def test_ordinary_ranges(self):
        self.assertEqual(self.parts("bytes=10-19"), [(10, 19)])
        self.assertEqual(self.parts("bytes=0-0"), [(0, 0)])
        self.assertEqual(self.parts("bytes=90-"), [(90, 99)])
        self.assertEqual(self.parts("bytes=-10"), [(90, 99)])
        self.assertEqual(self.parts("bytes=00-099"), [(0, 99)])

    def test_several_in_the_order_of_the_request(self):
        self.assertEqual(
            self.parts("bytes=50-59, 0-9 ,\t5-20,10-19,-5"), [(50, 59), (0, 9), (5, 20), (10, 19), (95, 99)]
        )

    def test_to_ignore(self):
        self.ignored(None, "", "bytes", "items=0-1", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,x", "bytes=1-2-3")

    def test_too_many(self):
        self.ignored("bytes=0-1,0-1,0-1,0-1,0-1,0-1")
        self.assertEqual(self.respond("bytes=0-1,3-4", 100, max_parts=1).status, 200)
        self.assertEqual(len(self.respond("bytes=0-1,3-4,6-7,9-10,12-13,15-16", 100, max_parts=6).parts), 6)


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
