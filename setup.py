"""Everything is in pyproject.toml; this file is what `--setup_file ./setup.py` of a Beam launch stages for workers."""

from setuptools import setup

setup()
