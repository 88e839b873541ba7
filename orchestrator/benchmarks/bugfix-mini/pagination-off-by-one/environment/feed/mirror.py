"""Keeps a copy of the feed."""


def mirror(client, copy):
    """Brings copy, a dict from id to item, up to date; returns how many items were added and removed."""
    current = {item["id"]: item for item in client.iter_items()}
    added = current.keys() - copy.keys()
    removed = copy.keys() - current.keys()
    for item_id in removed:
        del copy[item_id]
    copy.update(current)
    return len(added), len(removed)
