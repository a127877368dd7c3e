"""dataflow: carries SuperDARN radar data from the instrument to the people who use it."""

__version__ = "0.1.0"
