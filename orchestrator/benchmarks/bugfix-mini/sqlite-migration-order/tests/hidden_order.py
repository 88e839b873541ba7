"""Hidden tests: migrations are applied by number, late ones too."""

from hidden_support import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Order(Case):
    def test_ten_comes_after_nine(self):
        self.put(
            m10_last="INSERT INTO log VALUES ('ten');",
            m2_second="INSERT INTO log VALUES ('two');",
            m1_first="CREATE TABLE log (entry);",
            m9_ninth="INSERT INTO log VALUES ('nine');",
            m100_hundredth="INSERT INTO log VALUES ('hundred');",
        )
        files = ["1-first.sql", "2-second.sql", "9-ninth.sql", "10-last.sql", "100-hundredth.sql"]
        self.assertEqual(self.migrate(), (0, [f"applied {file}" for file in files], []))
        self.assertEqual(
            self.rows("SELECT entry FROM log ORDER BY rowid"), [("two",), ("nine",), ("ten",), ("hundred",)]
        )

    def test_leading_zeros_do_not_matter(self):
        self.put(m10_b="INSERT INTO a VALUES (1);", m0009_a="CREATE TABLE a (x);")
        self.assertEqual(self.migrate()[:2], (0, ["applied 0009-a.sql", "applied 10-b.sql"]))

    def test_status_lists_them_in_that_order(self):
        self.put(m10_b="CREATE TABLE b (x);", m9_a="CREATE TABLE a (x);")
        self.assertEqual(self.migrate("--status")[:2], (0, ["- 9-a.sql", "- 10-b.sql"]))

    def test_one_that_was_merged_late(self):
        self.put(m1_a="CREATE TABLE a (x);", m4_d="CREATE TABLE d (x);")
        self.migrate()
        self.put(m3_c="CREATE TABLE c (x);", m2_b="CREATE TABLE b (x);", m5_e="CREATE TABLE e (x);")
        self.assertEqual(self.migrate()[:2], (0, ["applied 2-b.sql", "applied 3-c.sql", "applied 5-e.sql"]))
        self.assertEqual(self.tables, {"a", "b", "c", "d", "e"})
        self.assertEqual(self.migrate(), (0, [], []))


if __name__ == "__main__":
    main()
