"""Synthetic electron microscopy with truth: grey values, classes and instances of any box."""

from em_data.synthetic.config import SyntheticConfig
from em_data.synthetic.render import SyntheticBlock, render
from em_data.synthetic.tissue import CLASSES

__all__ = ["CLASSES", "SyntheticBlock", "SyntheticConfig", "render"]
