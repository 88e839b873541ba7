"""What can be wrong with a template and its data."""


class TemplateError(Exception):
    """The template is not well formed."""


class MissingValue(LookupError):
    """A name of the template is not in the data."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not there")
        self.name = name
