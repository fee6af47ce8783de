"""Pages that a script writes are what it would write now."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_systems_is_up_to_date():
    spec = importlib.util.spec_from_file_location("systems", ROOT / "docs" / "systems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "systems.md").read_text() == module.page(), (
        "run `python docs/systems.py`"
    )
