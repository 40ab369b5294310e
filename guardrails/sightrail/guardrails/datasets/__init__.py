"""Published data sets and a user's own files, read into one kind of example.

Below fitting and evaluation, so that both read a format in one way.
"""

from .example import Example, PictureFile
from .published import FORMATS
from .reading import ExampleSet, Record, read_examples, read_records

__all__ = [
    "FORMATS",
    "Example",
    "ExampleSet",
    "PictureFile",
    "Record",
    "read_examples",
    "read_records",
]
