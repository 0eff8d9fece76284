"""The command `mmattn torture` as a script."""

import sys

from mmattn.cli.torture import main

if __name__ == '__main__':
    sys.exit(main())
