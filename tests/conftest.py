"""Here so that pytest puts this folder on the path: tests of every folder import `tolerance` and `desk`."""

from collections.abc import Iterator

import pytest

from desk import Desk


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A server whose answers a test sets."""
    made = Desk()
    yield made
    made.close()
