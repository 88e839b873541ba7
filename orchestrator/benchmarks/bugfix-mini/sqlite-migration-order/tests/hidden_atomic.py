"""Hidden tests: a migration and its row in the history are applied together, or not at all."""

from hidden_support import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too

TRIGGER = """
CREATE TABLE parts (id INTEGER PRIMARY KEY, text); -- one; two
CREATE TABLE seen (id, what);
CREATE TRIGGER notice AFTER INSERT ON parts
BEGIN
    INSERT INTO seen VALUES (new.id, 'first; ''quoted''');
    INSERT INTO seen VALUES (new.id, 'second');
END;
INSERT INTO parts (text) VALUES ('a;b'), ('-- no comment;');
/* the end; */ -- really
"""


class Atomic(Case):
    def fails(self, file):
        status, output, errors = self.migrate()
        self.assertEqual(status, 1)
        self.assertTrue(errors[-1].startswith(f"migrate: {file}: "), errors)
        return output

    def test_a_failed_one_leaves_nothing(self):
        self.put(
            m1_a="CREATE TABLE a (x);",
            m2_b="CREATE TABLE b (x);\nINSERT INTO a VALUES (1);\nINSERT INTO none VALUES (1);",
        )
        self.put(m3_c="CREATE TABLE c (x);")
        self.assertEqual(self.fails("2-b.sql"), ["applied 1-a.sql"])
        self.assertEqual(self.tables, {"a"})
        self.assertEqual(self.rows("SELECT * FROM a"), [])
        self.assertEqual(self.history, [(1, "1-a.sql")])
        self.assertEqual(self.fails("2-b.sql"), [])

    def test_it_goes_on_once_the_file_is_corrected(self):
        self.put(
            m1_a="CREATE TABLE a (x UNIQUE); INSERT INTO a VALUES (1); INSERT INTO a VALUES (1);",
            m2_b="CREATE TABLE b (x);",
        )
        self.fails("1-a.sql")
        self.put(m1_a="CREATE TABLE a (x UNIQUE); INSERT INTO a VALUES (1); INSERT INTO a VALUES (2);")
        self.assertEqual(self.migrate(), (0, ["applied 1-a.sql", "applied 2-b.sql"], []))
        self.assertEqual(self.rows("SELECT x FROM a"), [(1,), (2,)])

    def test_a_syntax_error_at_the_end(self):
        self.put(m1_a="CREATE TABLE a (x); INSERT INTO a VALUES (1); CREATE TABEL b (x);")
        self.fails("1-a.sql")
        self.assertEqual((self.tables, self.history), (set(), []))

    def test_changed_rows_come_back(self):
        self.put(m1_a="CREATE TABLE a (x); INSERT INTO a VALUES (1), (2);")
        self.migrate()
        self.put(m2_b="UPDATE a SET x = x * 10; DELETE FROM a WHERE x = 10; SELECT nothing FROM a;")
        self.fails("2-b.sql")
        self.assertEqual(self.rows("SELECT x FROM a ORDER BY x"), [(1,), (2,)])

    def test_the_row_in_the_history_belongs_to_it(self):
        self.put(m1_a="CREATE TABLE a (x);")
        self.migrate()
        self.put(
            m2_b="CREATE TABLE b (x);\nCREATE TRIGGER guard BEFORE INSERT ON schema_history\n"
            "BEGIN SELECT raise(ABORT, 'no; never'); END;"
        )
        self.migrate()
        self.assertEqual("b" in self.tables, (2, "2-b.sql") in self.history)

    def test_any_statements(self):
        self.put(m1_trigger=TRIGGER, m2_open="CREATE TABLE last (x)\n-- without a semicolon")
        self.assertEqual(self.migrate(), (0, ["applied 1-trigger.sql", "applied 2-open.sql"], []))
        self.assertEqual(self.rows("SELECT text FROM parts"), [("a;b",), ("-- no comment;",)])
        self.assertEqual(len(self.rows("SELECT * FROM seen WHERE what = 'first; ''quoted'''")), 2)
        self.assertEqual(len(self.rows("SELECT * FROM seen")), 4)
        self.assertIn("last", self.tables)


if __name__ == "__main__":
    main()
