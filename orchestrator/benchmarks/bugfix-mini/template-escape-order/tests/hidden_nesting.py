"""Hidden tests: blocks within blocks."""

from hidden_template import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Nesting(Case):
    def test_a_loop_in_a_loop(self):
        template = (
            "{% for row in rows %}<tr>{% for cell in row.cells %}<td>{{ row.n }}{{ cell }}</td>{% end %}</tr>{% end %}."
        )
        rows = [{"n": 1, "cells": ["a", "b"]}, {"n": 2, "cells": []}, {"n": 3, "cells": ["c"]}]
        self.gives(template, "<tr><td>1a</td><td>1b</td></tr><tr></tr><tr><td>3c</td></tr>.", rows=rows)

    def test_conditions_in_loops(self):
        template = "{% for x in xs %}{% if x.on %}{{ x.n }}{% if x.more %}+{% end %},{% end %}{% end %}!"
        xs = [
            {"n": 1, "on": True, "more": True},
            {"n": 2, "on": False, "more": True},
            {"n": 3, "on": True, "more": False},
        ]
        self.gives(template, "1+,3,!", xs=xs)

    def test_loops_in_conditions(self):
        template = (
            "{% if a %}<{% for x in xs %}{{ x }}{% end %}>{% end %}{% if b %}{% for x in xs %}no{% end %}{% end %}"
        )
        self.gives(template, "<12>", a=1, b=0, xs=[1, 2])

    def test_side_by_side_within(self):
        template = (
            "{% for x in xs %}{% if a %}a{% end %}{% if b %}b{% end %}{% for y in ys %}{{ y }}{% end %};{% end %}"
        )
        self.gives(template, "b12;b12;", xs=[0, 0], a=0, b=1, ys=[1, 2])

    def test_names_are_hidden_and_come_back(self):
        template = "{{ x }}{% for x in xs %}{{ x }}{% for x in ys %}{{ x }}{% end %}{{ x }};{% end %}{{ x }}"
        self.gives(template, "out1ab1;2ab2;out", x="out", xs=[1, 2], ys=["a", "b"])
        self.gives("{% for x in x %}{% for x in x %}{{ x }}{% end %};{% end %}", "12;3;", x=[[1, 2], [3]])

    def test_deep(self):
        template, expected = "x", "x"
        for level in range(30):
            template = "{% for a in one %}{% if a %}" + f"{level}{template}" + "{% end %}{% end %}"
            expected = f"{level}{expected}"
        self.gives(template, expected, one=[1])

    def test_errors_wherever_they_stand(self):
        for template in (
            "{% if no %}{% for x in none %}{% end %}",
            "{% if no %}{% frob %}{% end %}",
            "{% if no %}{% else %}{% end %}",
            "{% for x in none %}{% if %}{% end %}{% end %}",
            "{% if no %}{% end %}{% end %}",
            "{% for x in none %}{% for y in none %}{% end %}",
        ):
            with self.assertRaises(self.tinytpl.TemplateError, msg=template):
                self.tinytpl.render(template, {"no": False, "none": [], "x": 1})

    def test_data_is_not_changed_by_nested_loops(self):
        data = {"rows": [[1, 2], [3]], "row": "kept"}
        self.tinytpl.render("{% for row in rows %}{% for cell in row %}{{ cell }}{% end %}{% end %}", data)
        self.assertEqual(data, {"rows": [[1, 2], [3]], "row": "kept"})

    def test_command_line(self):
        ran = self.command("{% for a in as %}{% for b in a %}{{ b }}{% end %};{% end %}", {"as": [[1, 2], [3]]})
        self.assertEqual((ran.returncode, ran.stdout), (0, "12;3;"))
        ran = self.command("{% if a %}{% frob %}{% end %}", {"a": 0})
        self.assertEqual((ran.returncode, ran.stdout), (1, ""))
        self.assertNotIn("Traceback", ran.stderr)


if __name__ == "__main__":
    main()
