"""Hidden tests: values are escaped once, and are never templates."""

from hidden_template import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Escaping(Case):
    def test_each_sign_once(self):
        self.gives("{{ a }}", "Miller &amp; &lt;Sons&gt;", a="Miller & <Sons>")
        self.gives('<p title="{{ a }}">', '<p title="&quot;it&#x27;s&quot;">', a='"it\'s"')
        self.gives("{{ a }}", "&amp;amp; &amp;lt;", a="&amp; &lt;")

    def test_in_blocks(self):
        template = "{% for x in xs %}{{ x }} {{ a }};{% end %}{% if a %}{{ a }}{% end %}"
        self.gives(template, "&lt; &amp;;&amp; &amp;;&amp;", xs=["<", "&"], a="&")

    def test_the_template_is_not_escaped(self):
        self.gives("<b>&amp; \"'</b>{{ a }}", "<b>&amp; \"'</b>&gt;", a=">")

    def test_other_values_than_text(self):
        self.gives("{{ a }} {{ b }}", "12 [&#x27;&lt;&#x27;]", a=12, b=["<"])

    def test_a_value_is_only_text(self):
        self.gives("{{ a }} {{ a|raw }}", "{{ b }} {{ b }}", a="{{ b }}", b="secret")
        self.gives("{{ a }}{{ b }}", "{% if x %}{% end %}", a="{% if x %}", b="{% end %}")
        self.gives("{{ a }}", "{% frob %} {%", a="{% frob %} {%")

    def test_a_value_in_a_block_is_only_text(self):
        self.gives(
            "{% for x in xs %}{{ x }}{{ x|raw }}{% end %}",
            "{{ b }}{{ b }}{% if b %}{% if b %}",
            xs=["{{ b }}", "{% if b %}"],
            b=1,
        )
        self.gives("{% if a %}{{ a }}{% end %}", "{{ b }}", a="{{ b }}", b="secret")
        self.gives("{{ a }}b }}", "{{ b }}", a="{{ ", b="secret")

    def test_backslashes(self):
        self.gives("{{ a }}", r"\1 \g<0>".replace("<", "&lt;").replace(">", "&gt;"), a=r"\1 \g<0>")

    def test_command_line(self):
        ran = self.command("{{ a }} {{ a|raw }}\n", {"a": "<&>"})
        self.assertEqual((ran.returncode, ran.stdout), (0, "&lt;&amp;&gt; <&>\n"))


if __name__ == "__main__":
    main()
