"""Weights, whatever unit they were printed in."""

GRAMS = {"g": 1.0, "kg": 1000.0, "oz": 28.349523125, "lb": 453.59237}


def to_grams(amount, unit):
    """Converts an amount in ounces, pounds or kilograms to whole grams."""
    try:
        return round(amount * GRAMS[unit])
    except KeyError:
        raise ValueError(f"no such unit: {unit}") from None
