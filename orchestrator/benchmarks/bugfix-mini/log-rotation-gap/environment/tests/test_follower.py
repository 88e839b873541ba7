import os
import tempfile
import unittest

from follow import Follower


class OrdinaryFile(unittest.TestCase):
    def test_what_is_new(self):
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "app.log")
            follower = Follower(log, os.path.join(folder, "app.state"))
            self.assertEqual(follower.poll(), [])
            with open(log, "a", encoding="utf-8") as file:
                file.write("one\ntwo\n")
            self.assertEqual(follower.poll(), ["one", "two"])
            self.assertEqual(follower.poll(), [])
            follower.close()


if __name__ == "__main__":
    unittest.main()
