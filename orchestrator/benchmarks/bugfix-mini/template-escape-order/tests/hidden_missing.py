"""Hidden tests: values that are not there, and those that only look like it."""

from hidden_template import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Missing(Case):
    def strict(self, template, /, **data):
        return self.tinytpl.render(template, data, strict=True)

    def misses(self, name, template, /, **data):
        with self.assertRaises(self.tinytpl.MissingValue, msg=template) as missed:
            self.strict(template, **data)
        self.assertEqual(missed.exception.name, name)

    def test_values_that_look_like_nothing(self):
        self.gives("{{ a }} {{ b }} {{ c }}", "0 False 0.0", a=0, b=False, c=0.0)
        self.gives("[{{ a }}{{ b|raw }}{{ c }}]", "[0]", a=None, b=0, c="")

    def test_nothing(self):
        self.gives(
            "[{{ a }}{{ a.b }}{{ b.c.d }}{{ b.e }}{{ n.x }}{{ list.7 }}{{ list.x }}{{ text.0 }}{{ number.x }}]",
            "[]",
            b={"c": None, "f": 1},
            n=None,
            list=[1],
            text="abc",
            number=5,
        )

    def test_false_and_empty(self):
        self.gives(
            "[{% if a.b.c %}x{% end %}{% for x in a.b %}x{% end %}{% for x in none %}x{% end %}]", "[]", none=None
        )

    def test_strict(self):
        self.misses("a", "{{ a }}")
        self.misses("a.b.c", "{{ a.b.c }}", a={})
        self.misses("a.b.c", "{{ a.b.c|raw }}", a={"b": None})
        self.misses("list.2", "{{ list.0 }}{{ list.2 }}", list=[1, 2])
        self.misses("list.first", "{{ list.first }}", list=[1, 2])
        self.misses("text.0", "{{ text.0 }}", text="abc")
        self.misses("a.b", "{% if a.b %}x{% end %}", a={})
        self.misses("xs", "{% for x in xs %}x{% end %}")
        self.misses("x.name", "{% for x in xs %}{{ x.name }}{% end %}", xs=[{"name": 1}, {}])

    def test_strict_with_everything_there(self):
        template = "{{ a }}{% if b %}x{% end %}{% for c in cs %}{{ c.d }}{% end %}[{{ none }}]"
        self.assertEqual(self.strict(template, a=0, b=False, cs=[{"d": 1}, {"d": None}], none=None), "01[]")

    def test_what_is_not_shown_is_not_missing(self):
        template = "[{% if no %}{{ missing }}{% end %}{% for x in none %}{{ missing.too }}{% end %}]"
        self.assertEqual(self.strict(template, no=False, none=[]), "[]")

    def test_command_line(self):
        ran = self.command("[{{ a.b }}{{ n }}]\n", {"n": 0})
        self.assertEqual((ran.returncode, ran.stdout), (0, "[0]\n"))
        ran = self.command("[{{ a.b }}]", {"a": {}}, "--strict")
        self.assertEqual((ran.returncode, ran.stdout), (1, ""))
        self.assertIn("a.b", ran.stderr)
        self.assertNotIn("Traceback", ran.stderr)


if __name__ == "__main__":
    main()
