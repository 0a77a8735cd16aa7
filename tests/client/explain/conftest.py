import pytest
from builders.exported import write_exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A real exported model of nodules; tests must not change it."""
    return write_exported(tmp_path_factory.mktemp("explained") / "model")
