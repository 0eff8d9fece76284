"""The command `mmattn data import` as a script."""

import sys

from mmattn.cli.import_data import main

if __name__ == '__main__':
    sys.exit(main())
