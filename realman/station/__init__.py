"""The operator's station: a site's settings, the keys, view and report.

    site_config.py      site.toml as frozen dataclasses (`toml_config.py` reads any such file)
    client_command.py   `realman client`: a run from its flags to its exit code
    preflight.py        what is checked and shown before the arms move
    keyboard.py view.py the keys and the live view
    report.py run.py    what is left of a run
    support.py          `realman support`: one file for a bug report (`redaction.py` hides secrets)

The names in `__all__` are public. Each is loaded when you first use it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
