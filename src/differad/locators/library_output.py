"""Control what transformers and the hub's client write to stderr while a checkpoint loads: progress bars, and failed tries.

Imports transformers, so it is imported where a checkpoint is loaded.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import transformers.utils.logging as transformers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from differad.progress import is_quiet, is_verbose


@contextmanager
def without_bars(*, downloads: bool = False) -> Iterator[None]:
    """Within the context, no progress bars of transformers, and of the hub only with `downloads`."""
    of_hub = not are_progress_bars_disabled()
    of_transformers = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        # The hub's environment variable takes precedence, with a warning.
        warnings.filterwarnings("ignore", message="Cannot (dis|en)able progress bars")
        _show_bars(of_transformers=False, of_hub=downloads and of_hub)
        try:
            yield
        finally:
            _show_bars(of_transformers=of_transformers, of_hub=of_hub)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the context, bars show only on terminals without `-q`; failed tries, which our error summarises, only with `-v`."""
    is_watched = sys.stderr.isatty() and not is_quiet()
    with nullcontext() if is_watched else without_bars(), nullcontext() if is_verbose() else _without_retries():
        yield


@contextmanager
def _without_retries() -> Iterator[None]:
    handlers = list(logging.getLogger("huggingface_hub").handlers)
    for handler in handlers:
        handler.addFilter(_is_no_retry)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_retry)


def _is_no_retry(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message.startswith("Retrying in ") or " thrown while requesting " in message)


def _show_bars(*, of_transformers: bool, of_hub: bool) -> None:
    # The hub's last: transformers switches both.
    (transformers_logging.enable_progress_bar if of_transformers else transformers_logging.disable_progress_bar)()
    (enable_progress_bars if of_hub else disable_progress_bars)()
