"""Hidden tests: wide characters take two cells, combining marks none."""

from hidden_terminal import Case, Kept, main  # noqa: F401 - the tests of Kept are run here, too


class Wide(Case):
    def test_width(self):
        texts = {"日本": 4, "한글": 4, "ｆｕｌｌ": 8, "ﾊﾝ": 2, "🙂": 2, "e\u0301": 1, "a\u20dd": 1, "日e\u0301x": 4}
        self.assertEqual({text: self.width(text) for text in texts}, texts)

    def test_words(self):
        self.wraps("日本 語", 7, ["日本 語"])
        self.wraps("日本 語", 6, ["日本", "語"])
        self.wraps("I say 你好 to you", 10, ["I say 你好", "to you"])

    def test_long_words(self):
        self.wraps("日本語日本語日", 6, ["日本語", "日本語", "日"])
        self.wraps("日本語日本語日 x", 5, ["日本", "語日", "本語", "日 x"])
        self.wraps("a日本語", 4, ["a日", "本語"])
        self.wraps("🙂🙂🙂", 2, ["🙂", "🙂", "🙂"])

    def test_a_word_of_exactly_the_width(self):
        self.wraps("ab 日本語 cd", 6, ["ab", "日本語", "cd"])

    def test_combining_marks(self):
        self.wraps("re\u0301sume\u0301 cafe\u0301", 6, ["re\u0301sume\u0301", "cafe\u0301"])
        self.wraps("re\u0301sume\u0301 cafe\u0301", 11, ["re\u0301sume\u0301 cafe\u0301"])

    def test_marks_stay_with_their_character(self):
        self.wraps("e\u0301" * 5, 2, ["e\u0301" * 2, "e\u0301" * 2, "e\u0301"])
        self.wraps("日\u0301本e\u0301\u0323x", 3, ["日\u0301", "本e\u0301\u0323", "x"])


if __name__ == "__main__":
    main()
