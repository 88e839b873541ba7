import unittest

from wiki.links import render
from wiki.pages import Pages
from wiki.slug import slugify


class PlainTitles(unittest.TestCase):
    def test_slugs(self):
        self.assertEqual(slugify("How to: start (again)"), "how-to-start-again")

    def test_links(self):
        pages = Pages()
        pages.add("Home page", "")
        self.assertEqual(
            render(pages, "[[Home page]] & [[Away]]"),
            '<a href="home-page.html">Home page</a> &amp; <span class="missing">Away</span>',
        )


if __name__ == "__main__":
    unittest.main()
