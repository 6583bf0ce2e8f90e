"""The version of the product, stated here and nowhere else: the package's metadata reads it from this file."""

from typing import Final

VERSION: Final = "0.1.0"
PROTOCOL: Final = 1
"""Federation protocol version, min and max alike so far."""
