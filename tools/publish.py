"""The command `mmattn publish` as a script."""

import sys

from mmattn.cli.publish import main

if __name__ == '__main__':
    sys.exit(main())
