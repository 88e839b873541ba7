"""What can go wrong."""


class StockError(Exception):
    """Any refusal of the service."""


class OutOfStock(StockError):
    """Fewer pieces are there than were asked for."""

    def __init__(self, place, article, wanted, level):
        super().__init__(f"{place} has {level} of {article}, wanted {wanted}")
        self.level = level
