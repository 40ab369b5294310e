"""Published benchmarks, each read from a folder in its own format.

A format is one function from a folder to items; its docstring says where its facts come from.
"""

from .benchmark import BENCHMARKS, Benchmark, Together
from .folder import Folder, Row

__all__ = ["BENCHMARKS", "Benchmark", "Folder", "Row", "Together"]
