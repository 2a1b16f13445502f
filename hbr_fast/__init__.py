"""Hardness-based resampling at memory speed: loading, sampling, recording hardness, training ensembles.

The public names stand in `__init__.pyi` and are loaded when they are first used, so that importing this package costs
nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
