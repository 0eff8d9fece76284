"""The command `mmattn check-data` as a script."""

import sys

from mmattn.cli.check_data import main

if __name__ == '__main__':
    sys.exit(main())
