"""The command `mmattn benchmark` as a script."""

import sys

from mmattn.cli.benchmark import main

if __name__ == '__main__':
    sys.exit(main())
