"""Every registered block keeps every promise, or declares why it cannot."""

import functools
import re
import sys

import pytest
from torch._dynamo.exc import UserError
from torch._inductor import config as inductor

from mmattn.blocks import PROMISES, AttentionBlock
from mmattn.torch_compat import HAS_OLD_EXPORT
from tests.blocks import contract

BLOCKS = contract.registered()
CASES = [
    pytest.param(functools.partial(cls.build, **example), id=f'{name}-{i}')
    for name, cls in BLOCKS.items()
    for i, example in enumerate(cls.examples)
]


@pytest.mark.parametrize('check', contract.CHECKS.values(), ids=contract.CHECKS)
@pytest.mark.parametrize('build', CASES)
def test_contract(build, check, monkeypatch):
    if check is contract.compile and build.keywords == build.func.__self__.examples[0]:
        check = functools.partial(check, backend='inductor')  # of each block one to machine code
        check.__name__ = 'compile'
        # one call of the C++ compiler for a graph, not one for each kernel
        monkeypatch.setattr(inductor, 'cpp_wrapper', not HAS_OLD_EXPORT)
    if check.__name__ not in build().limits:
        check(build)
        return
    with pytest.raises((ValueError, AssertionError, UserError)):  # what is declared is so
        check(build)


@pytest.mark.openmmlab
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('build', CASES)
def test_a_pretrained_checkpoint_wins(build, init, tmp_path):
    if init in contract.inits(build):
        contract.pretrained(functools.partial(build, init=init), tmp_path)
        return
    with pytest.raises(ValueError, match='init='):  # what is declared is so
        build(init=init)


@pytest.mark.parametrize('cls', BLOCKS.values(), ids=BLOCKS)
def test_declared(cls):
    assert issubclass(cls, AttentionBlock)
    assert set(cls.build(**cls.examples[0]).limits) <= set(PROMISES)
    assert cls.kind and '_abbr_' in vars(cls)
    header = sys.modules[cls.__module__].__doc__
    published = (
        r'Source: .+\d{4},\s+(arXiv \d{4}\.\d{5}|PMLR \d+)'  # PMLR where there is no preprint
    )
    assert re.search(published, header, re.DOTALL)
    assert 'Reference code:' in header


@pytest.mark.openmmlab
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
def test_found_from_any_scope(scope):
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(scope):
        for name, cls in BLOCKS.items():
            assert MODELS.get(f'mmattn.{name}') is cls
