import unittest

from httprange import respond


class Respond(unittest.TestCase):
    def test_one_range(self):
        reply = respond("bytes=10-19", 100)
        self.assertEqual((reply.status, reply.parts), (206, [(10, 19)]))
        self.assertEqual(reply.headers, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"})

    def test_open_ranges(self):
        self.assertEqual(respond("bytes=90-", 100).parts, [(90, 99)])
        self.assertEqual(respond("bytes=-10", 100).parts, [(90, 99)])

    def test_several(self):
        self.assertEqual(respond("bytes=0-1, 5-6", 100).parts, [(0, 1), (5, 6)])

    def test_no_header(self):
        self.assertEqual(respond(None, 100).status, 200)


if __name__ == "__main__":
    unittest.main()
