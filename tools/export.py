"""The command `mmattn export` as a script."""

import sys

from mmattn.cli.export import main

if __name__ == '__main__':
    sys.exit(main())
