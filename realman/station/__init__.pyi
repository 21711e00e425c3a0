from .preflight import preflight as preflight
from .site_config import SIM_SITE as SIM_SITE
from .site_config import Site as Site
from .site_config import load_site as load_site
from .site_config import open_robot as open_robot

__all__ = [
    "SIM_SITE",
    "Site",
    "load_site",
    "open_robot",
    "preflight",
]
