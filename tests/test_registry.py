"""What the registry of mmattn finds, where the packages of the networks are missing and where not."""

import pickle
import subprocess
import sys
import textwrap

import pytest

from mmattn.registry import MODELS

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'cv2'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Refuse())
"""


def run(code: str, stdin: bytes = b'') -> bytes:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], input=stdin, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_blocks_need_no_mmcv_mmdet_mmseg_cv2():
    out = run(
        BLOCKED
        + textwrap.dedent("""
        import torch
        from torch import nn
        import mmattn
        from mmattn.visualization.recording import record

        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
        plugins = [dict(cfg=dict(type=type_), at='0') for type_ in ('mmattn.SE', 'CBAM')]
        print(mmattn.insert(model, plugins))
        with record(model) as maps:
            model(torch.randn(1, 3, 8, 8))
        print(sorted(maps), len(mmattn.plugins.report(model).rows))
        for type_ in 'mmattn.CBAN', 'mmattn.ATSS', 'DCN':
            try:
                mmattn.insert(nn.Conv2d(3, 8, 1), [dict(cfg=dict(type=type_), at='')])
            except ValueError as error:
                print(error)
        """)
    ).decode()
    lines = out.splitlines()
    assert lines[:2] == ["['0.se', '0.cbam']", "['0.cbam', '0.se'] 2"]
    assert 'no such type is registered. Did you mean mmattn.CBAM' in lines[2]
    assert all('no such type is registered.' in line for line in lines[3:]) and len(lines) == 5


@pytest.mark.parametrize('how', ['import', 'attribute', 'registry', 'scope'])
def test_other_networks_are_made_on_demand(how):
    ways = dict(
        attribute='import mmattn.models; cls = mmattn.models.ATSS',
        registry='from mmattn.registry import MODELS; cls = MODELS.get("ATSS")',
        scope='from mmengine.registry import MODELS; cls = MODELS.get("mmattn.ATSS")',
    )
    ways['import'] = 'from mmattn.models import ATSS as cls'
    out = run(
        f"""
        {ways[how]}
        from mmattn.registry import MODELS
        from mmdet.models import ATSS
        assert issubclass(cls, ATSS) and cls.trains_plugins and cls is MODELS.get('mmattn.ATSS')
        assert 'YOLOX' not in MODELS._module_dict
        print(len(MODELS), cls.__name__, 'YOLOX' in MODELS.module_dict, 'YOLOX' in repr(MODELS))
        """
    ).decode()
    assert out.split()[1:] == ['ATSS', 'True', 'True']


def test_classes_made_on_demand_are_pickled():
    from mmattn.models import ATSS, EncoderDecoder

    data = pickle.dumps([ATSS, EncoderDecoder])
    code = """
    import pickle, sys
    classes = pickle.loads(sys.stdin.buffer.read())
    print([f'{cls.__module__}.{cls.__name__}' for cls in classes])
    """
    assert b"['mmattn.models.ATSS', 'mmattn.models.with_plugins.EncoderDecoder']" in run(code, data)


def test_all_names_are_listed():
    MODELS.get('SE')
    listed = set(MODELS.module_dict)
    assert {'SE', 'DAHead', 'FasterRCNN', 'ATSS', 'CascadeEncoderDecoder'} <= listed
    assert len(listed) == len(MODELS) == len(list(MODELS.module_dict.values()))
    assert 'SGE' in MODELS.module_dict and 'Nothing' not in MODELS.module_dict
    with pytest.raises(AttributeError, match="module 'mmattn.models' has no attribute 'Nothing'"):
        __import__('mmattn.models').models.Nothing  # noqa: B018
