"""Options of `train` and `test`: one object, or its fields by name."""

import inspect

import pytest

from mmattn.engine.options import complete
from mmattn.engine.test import TestOptions
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import TrainOptions, train


def test_fields_replace_those_of_the_object():
    options = complete(TrainOptions(seed=3, amp=True), dict(seed=0))
    assert options == TrainOptions(seed=0, amp=True)


@pytest.mark.parametrize(
    'run', [lambda **f: train('a.py', **f), lambda **f: evaluate('a.py', None, **f)]
)
def test_an_unknown_field_is_named_with_the_nearest(run):
    with pytest.raises(TypeError, match="has no field 'work_dri'. Did you mean work_dir?"):
        run(work_dri='a')
    with pytest.raises(TypeError, match='Changes to the config are cfg_options'):
        run(options={'train_cfg.max_iters': 1})


@pytest.mark.parametrize('function', [train, evaluate])
def test_at_most_three_parameters(function):
    named = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    assert len(named) <= 3


@pytest.mark.parametrize('kind', [TrainOptions, TestOptions])
def test_every_field_is_documented(kind):
    for name in kind.__dataclass_fields__:
        assert f'\n        {name}: ' in kind.__doc__, name
