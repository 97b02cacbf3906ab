"""Classes of packages that take seconds to import, asked for without importing them."""

import sys
from pickle import UnpicklingError

from safetensors import SafetensorError


def is_of(value: object, module: str, name: str) -> bool:
    """Whether `value` is of the class `name` of `module`: where nobody has loaded the module, nothing is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def unreadable() -> tuple[type[Exception], ...]:
    """What Transformers, and torch's reader of .bin files, let through where a file is not what it seems."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, EOFError),
        *(AssertionError, ArithmeticError),
        *(UnpicklingError, SafetensorError, StrictDataclassError),
    )
