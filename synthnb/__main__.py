"""`python -m synthnb`."""

import sys

from synthnb.cli import main

sys.exit(main())
