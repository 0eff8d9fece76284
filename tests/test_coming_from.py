"""docs/coming_from.md: the names of both sides exist."""

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import mmcv.ops
import mmdet
import mmseg
import pytest
from huggingface_hub import ModelHubMixin
from mmcv.cnn.bricks import plugin
from mmdet import apis as det
from mmengine.registry import MODELS
from mmseg import apis as seg
from mmseg.registry import MODELS as SEG_MODELS

import mmattn
from mmattn.benchmarks.library_modules import _timm_layers
from mmattn.blocks.base import registered_blocks
from mmattn.config.check import check_config
from mmattn.config.load import load_config, parse_options
from mmattn.plugins.inserter import PLUGIN_KEYS
from tests.conftest import ROOT
from tests.documents import commands, unknown_words

PAGE = (ROOT / 'docs' / 'coming_from.md').read_text(encoding='utf-8')
MIM = [Path(package.__file__).parent / '.mim' for package in (mmdet, mmseg)]


@dataclass(frozen=True)
class Row:
    """A row of a table, with the code in its cells."""

    title: str  # of the section
    head: tuple[str, ...]
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    rest: str


def code(cell):
    return tuple(re.findall(r'`([^`]+)`', cell))


def tables():
    rows = []
    for section in re.split(r'^## ', PAGE, flags=re.M)[1:]:
        title, head = section.partition('\n')[0], None
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if not line.startswith('|'):
                head = None
            elif head is None:
                head = tuple(cells)
            elif not set(cells[0]) <= set('-:'):
                rows.append(Row(title, head, code(cells[0]), code(cells[1]), ' '.join(cells[2:])))
    return rows


ROWS = tables()


def of(title, head=''):
    found = [row for row in ROWS if row.title.startswith(title) and row.head[0].startswith(head)]
    assert found, title
    return found


def test_the_page_has_its_tables():
    assert len({(row.title, row.head) for row in ROWS}) == 8 and len(ROWS) > 90


# ---- ours ----
def test_our_commands_and_flags():
    tested = 0
    for row in ROWS:
        for text in row.ours:
            if re.match(r'mmattn [a-z]', text):
                (words,) = commands(f'```\n{text}\n```\n')
                assert unknown_words(words) == [], text
                tested += 1
            elif text.startswith('tools/'):
                assert (ROOT / text.split()[0]).exists(), text
    assert tested > 30


def test_our_python():
    tested = 0
    for row in ROWS:
        for text in (text for text in row.ours if text.startswith('mmattn.')):
            name = re.match(r'mmattn\.(\w+)', text)[1]
            assert name in mmattn.__all__, text
            if '(' in text:
                (call,) = ast.parse(text).body
                known = inspect.signature(getattr(mmattn, name)).parameters
                assert {keyword.arg for keyword in call.value.keywords} <= set(known), text
                assert len(call.value.args) <= len(known)
            tested += 1
    assert tested > 12


def test_our_keys_of_a_config():
    """They are in a config, which is then complete."""
    changes = [text for row in of('Arguments') for text in row.ours if re.match(r'[\w.]+=', text)]
    changes += [
        text for row in of('Models of timm') for text in row.ours if re.match(r'[\w.]+=', text)
    ]
    assert len(changes) > 15
    for change in dict.fromkeys(changes):
        cfg = load_config('fcn_r18_street', parse_options([change]))
        check_config(cfg)
    with pytest.raises(Exception, match='optimiser'):
        check_config(load_config('fcn_r18_street', parse_options(['optim_wrapper.optimiser.lr=1'])))


def test_our_blocks_and_their_places():
    blocks = registered_blocks()
    rows = of('Attention layers', 'timm, ')
    for row in rows:
        name, *options = row.ours or ('none',)
        if name != 'none' and row.ours:
            assert name in blocks, name
            for option in options:
                assert option.partition('=')[0] in inspect.signature(blocks[name]).parameters
        for placement in code(row.rest):
            text = (ROOT / 'configs/_base_/attention' / f'{placement}.py').read_text()
            assert f'mmattn.{name}' in text, placement
    for row in of('Attention layers', 'argument'):
        for text in row.ours:
            name, _, arguments = text.partition('(')
            keys = re.findall(r'(\w+)=', arguments)
            if name in blocks:
                assert keys and set(keys) <= set(inspect.signature(blocks[name]).parameters), text
    for row in of('Plugins of MMCV', 'class of'):
        for text in row.ours:
            name = text.removeprefix('mmattn.')
            assert name in blocks or hasattr(mmattn.models, name), text


def test_keys_of_our_plugins():
    keys = {
        text for row in of('Plugins of MMCV', 'MMCV') for text in row.ours if text.isidentifier()
    }
    positions = {key for key in keys if key.startswith('after_conv')}
    assert keys - positions - {'postfix'} <= set(PLUGIN_KEYS)
    assert set(PLUGIN_KEYS) - {'layout'} <= keys
    documented = inspect.getdoc(mmattn.insert)
    assert positions and all(f"'{name}'" in documented for name in positions - {'after_conv3'})


# ---- theirs ----
def test_tools_and_flags_of_mmdetection_and_mmsegmentation():
    texts = [(mim / 'tools' / name).read_text() for mim in MIM for name in ('train.py', 'test.py')]
    scripts = 0
    for row in of('The tools'):
        for text in row.theirs:
            if text.startswith('tools/'):
                assert any((mim / text.split()[0]).exists() for mim in MIM), text
                scripts += 1
            elif text.startswith('--') and text != '--attention':
                assert any(f"'{text}'" in source for source in texts), text
            elif text.startswith(('init_', 'inference_')):
                assert hasattr(det, text) or hasattr(seg, text), text
    assert scripts > 8


def test_plugins_and_classes_of_mmcv():
    source = inspect.getsource(mmdet.models.backbones.resnet) + inspect.getsource(plugin)
    for row in of('Plugins of MMCV', 'MMCV'):
        for text in row.theirs:
            assert re.search(rf'\b{text.split("=")[0]}\b', source), text
    for row in of('Plugins of MMCV', 'class of'):
        (name,) = row.theirs
        there = [SEG_MODELS.get(name), MODELS.get(name), getattr(mmcv.ops, name, None)]
        assert any(there), name


def test_layers_of_timm():
    source = inspect.getsource(_timm_layers('create_attn'))
    for row in of('Attention layers', 'timm, '):
        for text in row.theirs:
            assert f'attn_type == {text}' in source, text
    layers = _timm_layers()
    known = set(inspect.signature(layers.SEModule).parameters)
    for row in of('Attention layers', 'argument'):
        for text in row.theirs:
            assert text.partition('=')[0] in known, text


def test_the_hub():
    known = set()
    for name in 'from_pretrained', 'save_pretrained', 'push_to_hub':
        known |= set(inspect.signature(getattr(ModelHubMixin, name)).parameters)
    for row in of('Sharing'):
        for text in row.theirs:
            if text.isidentifier() and text not in ('trust_remote_code', 'ModelCard'):
                assert text in known, text
    assert hasattr(huggingface_hub, 'ModelCard')
