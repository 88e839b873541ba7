import importlib
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.getcwd())


class PagesCase(unittest.TestCase):
    def setUp(self):
        self.pages = importlib.import_module("wiki.pages").Pages()

    def slugs(self, *titles):
        return [self.pages.add(title, f"text of {title}") for title in titles]

    def content(self):
        return [(page.title, page.slug, page.text) for page in self.pages]


class Collisions(PagesCase):
    def test_equal_slugs_are_numbered(self):
        self.assertEqual(self.slugs("C++", "C#", "C", "D", "c"), ["c", "c-2", "c-3", "d", "c-4"])
        self.assertEqual(len(self.pages), 5)
        self.assertEqual([page.title for page in self.pages], ["C++", "C#", "C", "D", "c"])

    def test_a_number_that_is_taken(self):
        self.assertEqual(self.slugs("C 2", "C", "C#", "C++", "C-2"), ["c-2", "c", "c-3", "c-4", "c-2-2"])

    def test_a_title_that_looks_like_a_numbered_one_comes_later(self):
        self.assertEqual(self.slugs("C", "C#", "C 2", "C++"), ["c", "c-2", "c-2-2", "c-3"])

    def test_titles_without_letters(self):
        self.assertEqual(self.slugs("!?", "???", "Page", "Page 2"), ["page", "page-2", "page-3", "page-2-2"])

    def test_case_counts(self):
        self.assertEqual(self.slugs("Go", "GO", "go"), ["go", "go-2", "go-3"])

    def test_compatibility_forms_are_other_titles(self):
        self.assertEqual(self.slugs("x2", "x\u00b2", "\uff582"), ["x2", "x2-2", "x2-3"])

    def test_texts_are_kept_apart(self):
        self.slugs("C++", "C#")
        self.assertEqual(self.content(), [("C++", "c", "text of C++"), ("C#", "c-2", "text of C#")])


class SameTitle(PagesCase):
    def test_adding_again_replaces_the_text(self):
        self.assertEqual(self.slugs("C++", "C#", "Home"), ["c", "c-2", "home"])
        self.assertEqual(self.pages.add("C#", "new"), "c-2")
        self.assertEqual(self.pages.add("C++", "newer"), "c")
        self.assertEqual(
            self.content(), [("C++", "c", "newer"), ("C#", "c-2", "new"), ("Home", "home", "text of Home")]
        )

    def test_composed_and_decomposed(self):
        self.assertEqual(self.slugs("Cafe\u0301", "Caf\u00e9", "Cafe"), ["caf\u00e9", "caf\u00e9", "cafe"])
        self.assertEqual([page.title for page in self.pages], ["Cafe\u0301", "Cafe"])

    def test_white_space(self):
        self.assertEqual(self.slugs("Home page", " Home \t page ", "Homepage"), ["home-page", "home-page", "homepage"])
        self.assertEqual([page.title for page in self.pages], ["Home page", "Homepage"])

    def test_find(self):
        self.slugs("C++", "C#", "Cafe\u0301 noir")
        self.assertEqual(self.pages.find(" C#").slug, "c-2")
        self.assertEqual(self.pages.find("Caf\u00e9  noir").slug, "caf\u00e9-noir")
        self.assertIsNone(self.pages.find("c"))
        self.assertIsNone(self.pages.find("C"))


class Command(unittest.TestCase):
    def test_every_page_has_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "in"), Path(folder, "out")
            source.mkdir()
            titles = ["über uns", "Ber uns", "日本語", "C++", "C#"]
            for number, title in enumerate(titles):
                (source / f"{number}.txt").write_text(f"{title}\nThis is {number}.", encoding="utf-8")
            environment = os.environ | {"PYTHONUTF8": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "wiki", "build", str(source), "--out", str(out)],
                capture_output=True,
                encoding="utf-8",
                check=True,
                env=environment,
            )
            names = ["über-uns", "ber-uns", "日本語", "c", "c-2"]
            self.assertEqual(done.stdout.splitlines(), [f"{t} -> {n}" for t, n in zip(titles, names, strict=True)])
            written = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
            self.assertEqual(written, {f"{name}.html": f"This is {number}." for number, name in enumerate(names)})


if __name__ == "__main__":
    unittest.main(verbosity=2)
