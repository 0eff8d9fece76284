"""`python -m mmattn`: the command `mmattn`, also for `torchrun -m mmattn train`."""

import sys

from mmattn.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
