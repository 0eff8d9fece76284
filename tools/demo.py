"""The command `mmattn demo` as a script."""

import sys

from mmattn.cli.demo import main

if __name__ == '__main__':
    sys.exit(main())
