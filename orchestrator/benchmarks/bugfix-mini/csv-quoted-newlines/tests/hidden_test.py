import importlib
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.getcwd())

HEADER = "name,street,town,phone\n"


class ReaderCase(unittest.TestCase):
    def setUp(self):
        self.reader = importlib.import_module("contacts.reader")
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def read(self, text, encoding="utf-8"):
        path = os.path.join(self.folder.name, "export.csv")
        with open(path, "w", encoding=encoding, newline="") as file:
            file.write(text)
        return [(c.name, c.street, c.town, c.phone) for c in self.reader.read_contacts(path)]

    def message(self, text):
        with self.assertRaises(self.reader.ReaderError) as caught:
            self.read(text)
        return str(caught.exception)


class MultiLineFields(ReaderCase):
    def test_a_quoted_field_spans_lines(self):
        self.assertEqual(
            self.read(HEADER + 'A,"House\n1 Lane",Leeds,1\nB,2 Row,York,2\n'),
            [("A", "House\n1 Lane", "Leeds", "1"), ("B", "2 Row", "York", "2")],
        )

    def test_crlf_files_give_single_newlines(self):
        text = (HEADER + 'A,"House\n1 Lane\nRear",Leeds,1\nB,2 Row,York,2\n').replace("\n", "\r\n")
        self.assertEqual(self.read(text), [("A", "House\n1 Lane\nRear", "Leeds", "1"), ("B", "2 Row", "York", "2")])

    def test_empty_lines_and_hashes_inside_quotes_are_text(self):
        self.assertEqual(
            self.read(HEADER + '# note\n\nA,"House\n\n# 4, rear\n#5",Leeds,1\n# end\n'),
            [("A", "House\n\n# 4, rear\n#5", "Leeds", "1")],
        )

    def test_several_multi_line_fields_in_one_record(self):
        self.assertEqual(self.read(HEADER + '"A\nB","C\nD","E\nF","G\nH"\n'), [("A\nB", "C\nD", "E\nF", "G\nH")])

    def test_doubled_quotes_next_to_line_breaks(self):
        self.assertEqual(
            self.read(HEADER + 'A,"The ""Old""\n""Forge""",Leeds,1\n'),
            [("A", 'The "Old"\n"Forge"', "Leeds", "1")],
        )

    def test_multi_line_fields_with_semicolons(self):
        self.assertEqual(
            self.read('name;street;town;phone\nA;"One; left\ntwo, right";Leeds;1\n'),
            [("A", "One; left\ntwo, right", "Leeds", "1")],
        )

    def test_a_field_starting_with_a_hash_on_the_record_line(self):
        self.assertEqual(self.read(HEADER + '"#1 Shop","x\ny",Leeds,1\n'), [("#1 Shop", "x\ny", "Leeds", "1")])


class Messages(ReaderCase):
    def test_an_unclosed_quote_names_the_line_of_its_record(self):
        self.assertEqual(
            self.message(HEADER + '\n# x\nA,1,Leeds,1\nB,"2 Row,York,2\nC,3,Hull,3\n'), "line 5: unclosed quote"
        )

    def test_an_unclosed_quote_on_the_last_line(self):
        self.assertEqual(self.message(HEADER + 'A,1,Leeds,"1'), "line 2: unclosed quote")

    def test_wrong_columns_after_a_multi_line_record(self):
        self.assertEqual(
            self.message(HEADER + 'A,"x\ny\nz",Leeds,1\n# c\nB,2,York\n'), "line 6: expected 4 columns, got 3"
        )

    def test_wrong_columns_in_a_multi_line_record(self):
        self.assertEqual(self.message(HEADER + 'A,"x\ny",Leeds,1,extra\n'), "line 2: expected 4 columns, got 5")

    def test_wrong_columns_on_one_line(self):
        self.assertEqual(self.message("# a\n" + HEADER + "\nA,1\n"), "line 4: expected 4 columns, got 2")

    def test_a_wrong_header(self):
        self.assertIn("line 1", self.message("who,where\nA,1\n"))


class PlainFiles(ReaderCase):
    def test_comments_blanks_quotes_and_spaces(self):
        self.assertEqual(
            self.read("# c\n\n" + HEADER + '"Quinn, Tom", 1 Row ,"The ""Old"" Forge",  7 \n   \n#x\nB,1,York,2'),
            [("Quinn, Tom", "1 Row", 'The "Old" Forge', "7"), ("B", "1", "York", "2")],
        )

    def test_quotes_inside_unquoted_fields_are_characters(self):
        self.assertEqual(
            self.read(HEADER + 'Pipe 5" Ltd,9 Dock,Hull,3\nBo,1 Row,York,4\n'),
            [('Pipe 5" Ltd', "9 Dock", "Hull", "3"), ("Bo", "1 Row", "York", "4")],
        )

    def test_semicolons_and_a_byte_order_mark(self):
        self.assertEqual(
            self.read("name;street;town;phone\nZoë;1, Row;York;2\n", "utf-8-sig"), [("Zoë", "1, Row", "York", "2")]
        )

    def test_a_file_with_a_header_only(self):
        self.assertEqual(self.read(HEADER), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
