"""kdtrain: a plugin-style trainer for knowledge distillation on OneFlow.

``__init__.pyi`` lists the public API, which plugins use. A name is imported when it is first used, because
the import of oneflow takes one to two seconds.
"""

import lazy_loader

from kdtrain._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
