"""What worked before, and how the files of tests ask."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.getcwd())


class Case(unittest.TestCase):
    def setUp(self):
        import tinytpl

        self.tinytpl = tinytpl

    def gives(self, template, expected, /, **data):
        self.assertEqual(self.tinytpl.render(template, data), expected)

    def command(self, template, data, *options):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, "page.html"), Path(folder, "data.json")]
            files[0].write_text(template, encoding="utf-8")
            files[1].write_text(json.dumps(data))
            command = [sys.executable, "-B", "-m", "tinytpl", *map(str, files), *options]
            return subprocess.run(command, capture_output=True, text=True)


class Kept(Case):
    """Part of every file of tests."""

    def test_plain_text_and_values(self):
        self.gives("<p class=\"x\">a & b 'c'</p>\n", "<p class=\"x\">a & b 'c'</p>\n")
        self.gives("{{a}}-{{ a }}-{{ b.c_1 }}-{{ list.1 }}", "x-x-7-z", a="x", b={"c_1": 7}, list=["y", "z"])
        self.gives("[{{ a }}]", "[]", a=None)

    def test_raw(self):
        self.gives("{{ a|raw }}{{ a | raw }}", "<i>&</i>" * 2, a="<i>&</i>")

    def test_one_loop(self):
        self.gives(
            "<ul>{% for x in xs %}<li>{{ x.n }}{{ y }}</li>{%end%}</ul>",
            "<ul><li>1!</li><li>2!</li></ul>",
            xs=[{"n": 1}, {"n": 2}],
            y="!",
        )
        self.gives("[{% for x in a.xs %}x{% end %}]", "[]", a={"xs": []})

    def test_one_condition(self):
        for value, expected in ((True, "[yes 7]"), (0, "[]"), ("", "[]"), ("0", "[yes 7]"), ([], "[]"), (None, "[]")):
            self.gives("[{% if a.b %}yes {{ n }}{% end %}]", expected, a={"b": value}, n=7)

    def test_errors(self):
        for template in ("{% for x in xs %}", "a{% end %}", "{% if %}a{% end %}", "{% frob %}"):
            with self.assertRaises(self.tinytpl.TemplateError, msg=template):
                self.tinytpl.render(template, {"xs": [1]})

    def test_data_is_not_changed(self):
        data = {"x": "before", "xs": [1, 2]}
        self.tinytpl.render("{% for x in xs %}{{ x }}{% end %}", data)
        self.assertEqual(data, {"x": "before", "xs": [1, 2]})


def main():
    print("passed" if unittest.main(exit=False).result.wasSuccessful() else "failed")
