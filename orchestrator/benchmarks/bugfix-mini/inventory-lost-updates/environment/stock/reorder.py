"""Orders more when a place runs low."""


class Reorder:
    """A listener that receives a batch as soon as a level falls below the minimum."""

    def __init__(self, service, minimum, batch):
        self._service = service
        self._minimum = minimum
        self._batch = batch
        self.orders = []

    def __call__(self, place, article, level):
        if level < self._minimum:
            self.orders.append((place, article))
            self._service.receive(place, article, self._batch)
