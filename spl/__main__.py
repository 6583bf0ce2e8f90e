"""`python -m spl` is the same as `spl`."""

import sys

from .cli.main import main

sys.exit(main())
