import importlib
import os
import sys
import unittest

sys.path.insert(0, os.getcwd())


class Links(unittest.TestCase):
    def setUp(self):
        self.pages = importlib.import_module("wiki.pages").Pages()
        self.render = importlib.import_module("wiki.links").render
        for title in ("C++", "C#", "Home page", "Cafe\u0301", "日本語", "R&D"):
            self.pages.add(title, "")

    def check(self, text, html):
        self.assertEqual(self.render(self.pages, text), html)

    def test_a_link_leads_to_the_page_of_its_title(self):
        self.check("[[C#]], not [[C++]]", '<a href="c-2.html">C#</a>, not <a href="c.html">C++</a>')

    def test_other_words(self):
        self.check("[[ C# | sharp ]]", '<a href="c-2.html">sharp</a>')
        self.check("[[Home page|C#]]", '<a href="home-page.html">C#</a>')

    def test_titles_that_only_share_a_slug_are_missing(self):
        self.check(
            "[[C]] [[c#]] [[Home-page]]",
            " ".join(f'<span class="missing">{t}</span>' for t in ("C", "c#", "Home-page")),
        )
        self.check("[[C|see <C>]]", '<span class="missing">see &lt;C&gt;</span>')

    def test_forms_of_one_title(self):
        self.check("[[Caf\u00e9]]", '<a href="caf\u00e9.html">Caf\u00e9</a>')
        self.check("[[Home   page]]", '<a href="home-page.html">Home   page</a>')

    def test_other_scripts(self):
        self.check("[[日本語|jp]]!", '<a href="日本語.html">jp</a>!')

    def test_escaping(self):
        self.check('<b> & "[[R&D]]"', '&lt;b&gt; &amp; &quot;<a href="r-d.html">R&amp;D</a>&quot;')

    def test_text_without_links(self):
        self.check("a [single] [[]] [[|x]] | b", "a [single] [[]] [[|x]] | b")

    def test_links_made_before_a_later_page(self):
        self.check("[[C]]", '<span class="missing">C</span>')
        self.pages.add("C", "")
        self.check("[[C]]", '<a href="c-3.html">C</a>')


if __name__ == "__main__":
    unittest.main(verbosity=2)
