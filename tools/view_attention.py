"""The command `mmattn view-attention` as a script."""

import sys

from mmattn.cli.view_attention import main

if __name__ == '__main__':
    sys.exit(main())
