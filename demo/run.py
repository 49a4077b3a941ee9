"""The whole path, from nothing: train two models, upgrade a gallery from one to the other, see what it was worth.

Results are kept in demo/work; a second run reuses them. Run it as ``make demo``.
"""

import os
import sys

if __name__ == "__main__":
    # Threads that wait for others sleep instead of spinning, or training crawls on a machine that does other things
    # besides. OpenMP reads this once, when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from pipeline import main

    sys.exit(main())
