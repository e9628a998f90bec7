"""``python -m lms_geometry`` is ``lms-geometry``."""

import sys

from lms_geometry.cli import main

sys.exit(main())
