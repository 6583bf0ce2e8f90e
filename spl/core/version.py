"""The version of the product, stated here and nowhere else, and what daemon and commands of one version agree on.

The package's metadata reads this file.
"""

from typing import Final

VERSION: Final = "0.1.0"
DISTRIBUTION: Final = "syncropel-pair"
"""The name on the package index, where `spl` belongs to something unrelated."""
SOCKET: Final = "run/spl.sock"
"""Where in its home a daemon of this version listens for the commands."""
PAIR_NAMES: Final = "run/pairs.list"
"""Where it keeps the names of live pairs, one a line, for the completion of shells."""
PROTOCOL: Final = 1
"""Federation protocol version, min and max alike so far."""
