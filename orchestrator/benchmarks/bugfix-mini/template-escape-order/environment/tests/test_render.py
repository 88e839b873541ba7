import unittest

from tinytpl import render


class Render(unittest.TestCase):
    def test_values(self):
        self.assertEqual(render("<p>{{ a.b }} {{c|raw}}</p>", {"a": {"b": 1}, "c": "<i>"}), "<p>1 <i></p>")

    def test_a_loop(self):
        self.assertEqual(render("{% for x in xs %}<li>{{ x }}</li>{% end %}", {"xs": [1, 2]}), "<li>1</li><li>2</li>")

    def test_a_condition(self):
        template = "{% if a %}yes{% end %}"
        self.assertEqual([render(template, {"a": a}) for a in (True, False)], ["yes", ""])


if __name__ == "__main__":
    unittest.main()
