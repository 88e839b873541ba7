import unittest

from contacts.model import Contact
from contacts.reader import read_contacts


class PlainFiles(unittest.TestCase):
    def test_the_sample_is_read(self):
        contacts = read_contacts("samples/plain.csv")
        self.assertEqual([c.name for c in contacts], ["Ada Byron", "Quinn, Tom", 'Pipe 5" Ltd'])
        self.assertEqual(contacts[1], Contact("Quinn, Tom", 'The "Old" Forge', "York", "01904 7"))


if __name__ == "__main__":
    unittest.main()
