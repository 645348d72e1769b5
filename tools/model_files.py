"""Print where the catalogue keeps the weights of models: `python -m tools.model_files ID...`, JSON {id: path or null}.

With `--store`, print the folder of all of them. Runs in the gateway's environment, unlike the rest of the set-up, and
reads the settings as `outpost` does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from appliance.settings import SettingsError, choose_file, load
from runtimes.catalogue import Catalogue, CatalogueError


def main() -> None:
    try:
        settings = load(choose_file(None, os.environ, Path.cwd()), os.environ, machine=False).settings
        store = settings.data_dir.absolute() / "models"
        if sys.argv[1:] == ["--store"]:
            print(store)
            return
        catalogue = Catalogue(settings.catalogue.paths, store)
        ready = {model: catalogue.entry(model).state == "ready" for model in sys.argv[1:]}
        found = {model: str(catalogue.resolve(model).main.resolve()) if here else None for model, here in ready.items()}
    except (SettingsError, CatalogueError) as error:
        sys.exit(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
