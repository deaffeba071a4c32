import pytest

from worker import running


@pytest.fixture(scope="session")
def worker():
    """One worker for all tests that leave it as it was."""
    with running() as worker:
        yield worker
