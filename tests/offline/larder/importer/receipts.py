"""Reads receipts as shops print them.

Every chain prints its own columns; `LAYOUTS` says where each has the name, the amount and the price.
"""

import re

from . import units

# One pattern a supermarket. The first one that fits the head of a receipt decides.
LAYOUTS = {
    "greenfield": re.compile(r"^(?P<name>.{20}) +(?P<amount>[\d.]+)(?P<unit>oz|lb|g|kg) +(?P<price>[\d.]+)$"),
    "corner": re.compile(r"^(?P<price>[\d.]+)\s+(?P<name>.+?)\s+x(?P<amount>\d+)(?P<unit>g)$"),
}


class Receipt:
    """What was bought, line by line."""

    def __init__(self, shop, lines):
        self.shop = shop
        self.lines = lines

    @classmethod
    def parse(cls, text):
        """Parses a receipt; lines that are no goods (totals, greetings) are left out."""
        head, *rest = text.splitlines()
        shop = next(name for name in LAYOUTS if name in head.lower())
        found = (LAYOUTS[shop].match(line) for line in rest)
        return cls(shop, [goods(match) for match in found if match])


def goods(match):
    grams = units.to_grams(float(match["amount"]), match["unit"])
    return {"name": match["name"].strip(), "grams": grams, "note": "how are spoiled jars removed"}
