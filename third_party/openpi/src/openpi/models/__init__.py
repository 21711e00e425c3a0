"""Models: pi0, pi0.5 and pi0-FAST, their layers and their tokenizers."""

import sys

if sys.version_info < (3, 11):
    raise ImportError(
        f"openpi.models: found Python {sys.version_info[0]}.{sys.version_info[1]}, expected 3.11 or 3.12. Install one"
    )
