"""Keep Transformers' progress bars and reports out of the user's output."""

import contextlib
import io
import logging
from collections.abc import Iterator

from halfback.errors import of_extra


def hush() -> None:
    """What packages say, as they are imported, of kernels that a CPU has no use for goes unsaid."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and nothing below an error inside; the settings of before are put back after."""
    hush()
    with of_extra("transformers"):
        from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        # The reader of GGUF files has a progress bar of its own, which knows none of these settings.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        hub.setLevel(hub_level)
