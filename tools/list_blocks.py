"""The command `mmattn list-blocks` as a script."""

import sys

from mmattn.cli.list_blocks import main

if __name__ == '__main__':
    sys.exit(main())
