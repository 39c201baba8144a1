"""`python -m forcing` is the command `forcing`."""

import sys

from forcing.cli import main

sys.exit(main())
