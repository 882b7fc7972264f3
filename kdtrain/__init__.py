"""kdtrain: a plugin-style trainer for knowledge distillation on OneFlow.

``__init__.pyi`` lists the public API, which plugins are written against. A name is imported when it is
first used, because importing oneflow takes a second or two.
"""

import lazy_loader

from kdtrain._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
