"""The command `mmattn prepare-data` as a script."""

import sys

from mmattn.cli.prepare_data import main

if __name__ == '__main__':
    sys.exit(main())
