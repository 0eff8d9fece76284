"""Run by `make test-openmmlab` alone: the full environment has the forks of these packages."""

import os

if os.environ.get('MMATTN_ENVIRONMENT') != 'openmmlab':
    collect_ignore_glob = ['test_*.py']
