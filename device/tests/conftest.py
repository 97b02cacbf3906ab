"""What the device's tests share: the reference's film sentences and tiny text model, and a package of it."""

from pathlib import Path

import pytest
from mixed import package_folder, run_of

from halfback.testing.texts import sentences as sentences
from halfback.testing.texts import tiny_bert as tiny_bert


@pytest.fixture(scope="session")
def base(tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with all graphs that a device may need of this model cut after two blocks; `mixed.adapted` takes it."""
    exact = {"algorithm__directions": 0, "algorithm__exact_blocks": "all"}
    config = run_of("ho_sfl", tiny_bert, sentences, **exact)
    return package_folder(config, tmp_path_factory.mktemp("packages") / "base")
