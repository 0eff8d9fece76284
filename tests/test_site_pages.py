"""What the extension of the site makes: equations, figures, links, the pages of blocks and models."""

import re
import sys

import pytest
import torch
import yaml
from torch import nn

import mmattn
from mmattn.blocks import AttentionBlock
from mmattn.blocks.base import registered_blocks
from tests.conftest import ROOT

sys.path.append(str(ROOT / 'docs' / '_ext'))

from site_pages import blocks, data_flow, drawing, formula, links, mathml, model_zoo, positions
from site_pages.tables import escape, table

DOCS = ROOT / 'docs'


@pytest.mark.parametrize(
    'sentence, equations, remarks',
    [
        ('y = x * sigmoid(W2 z + b1).', [r'y = x \odot \text{sigmoid} (W_{2} \, z + b_{1})'], []),
        ('y = gamma * q[p] . k_s / sqrt(d), d the channels.', [r'y = \gamma \, q _{p} \cdot k_{s} / \sqrt{d}'], ['d the channels']),
        ("x' <- [max_c x ; mean_hw(x)]^T", [r"x^{\prime} \leftarrow [\text{max}_{c} \; x \,;\, \text{mean}_{hw} (x)] ^{T}"], []),
        ('a = f(b, c); b = sum_i mean of u_i, no more', [r'a = f (b ,\, c)', r'b = \sum_{i} \; \text{mean of} \; u_{i}'], ['no more']),
        ('y = conv_out(t_mul 2)', [r'y = \text{conv-out} (t_{\text{mul}} \, 2)'], []),
    ],
)  # fmt: skip
def test_a_formula_of_a_docstring_as_latex(sentence, equations, remarks):
    parsed = formula.parse_formula(sentence)
    assert [*parsed.equations] == equations and [*parsed.remarks] == remarks


@pytest.mark.parametrize('sentence', ['y = x & z', 'y = (x + z', 'y = x + z)', 'y = [x)'])
def test_a_formula_that_cannot_be_read_is_refused(sentence):
    with pytest.raises(ValueError, match='formula'):
        formula.to_latex(sentence)


def test_mathml_is_for_one_line_or_aligned_lines():
    assert mathml.to_mathml('x^2').startswith('<math') and '<msup>' in mathml.to_mathml('x^2')
    assert 'display="block"' in mathml.to_mathml('x', 'block')
    for lines in r'a &= b \\ c &= d', r'\begin{aligned}a &= b \\ c &= d\end{aligned}':
        assert mathml.to_mathml(lines).count('<mtr') == 2
    with pytest.raises(ValueError, match='unknown command'):
        mathml.to_mathml(r'\nothing x')


def test_the_data_flow_of_a_gate():
    flow = data_flow.trace(mmattn.SE)
    assert [step.name for step in flow.steps] == [
        'x', 'channel means', 'Linear', 'relu', 'Linear', 'sigmoid', '×',
    ]  # fmt: skip
    assert flow.steps[2].layers == ('fc1',) and flow.steps[2].shapes == (('N', 'C/16'),)
    assert flow.steps[-1].sources == (0, 5) and flow.steps[-1].shapes == (('N', 'C', 'H', 'W'),)


def test_the_data_flow_of_a_block_of_two_maps_and_of_sizes_that_are_its_own():
    flow = data_flow.trace(mmattn.AttentionGate)
    assert flow.inputs == 2 and [step.name for step in flow.steps[:2]] == ['x', 'gating']
    assert flow.steps[1].shapes == (('N', '512', 'H/2', 'W/2'),)
    (width,) = {
        s.shapes[0][1] for s in data_flow.trace(mmattn.SKConv2d).steps if s.layers == ('fc1.0',)
    }
    assert width == '32'  # min_channels, not a part of C


@pytest.mark.parametrize('name', blocks.names())
def test_every_block_can_be_traced_and_is_left_as_it_was(name):
    cls = registered_blocks()[name]
    flow = data_flow.trace(cls)
    assert all('?' not in shape for step in flow.steps for shape in step.shapes)
    assert all(source < index for index, step in enumerate(flow.steps) for source in step.sources)
    assert 'watched' not in repr(vars(sys.modules[cls.__module__]))
    svg = drawing.draw_flow(flow, 'a "title" & more')
    assert svg.count('<rect') == len(flow.steps) + 1 and '&amp; more' in svg


class Constant(AttentionBlock):
    """y = 1."""

    _abbr_, kind = 'constant', 'none'

    def __init__(self, in_channels: int, *, init: str = 'paper') -> None:
        super().__init__(in_channels, init)

    def forward(self, x):
        return torch.ones(3)


def test_a_result_that_comes_from_nowhere_is_no_data_flow():
    with pytest.raises(ValueError, match='Constant: cannot see where its result comes from'):
        data_flow.trace(Constant)


def rewrite(text, page=DOCS / 'guide.md'):
    return links.rewrite_links(text, page, DOCS, 'https://host/us', {'SECURITY.md': 'security.md', 'docs/blocks.md#se': 'blocks/SE.md'})  # fmt: skip


@pytest.mark.parametrize(
    'text, expected',
    [
        ('[a](costs.md#x) and `[b](../tools/train.py)`', None),
        ('[a](https://x.org/y.md) [b](#here)', None),
        ('```\n[a](../tools/train.py)\n```\n', None),
        ('[a](../tools/train.py)', '[a](https://host/us/blob/main/tools/train.py)'),
        ('[a](../configs/_base_)', '[a](https://host/us/tree/main/configs/_base_)'),
        ('[a](bccd.LICENSE) ![b](bccd.jpg)', '[a](https://host/us/blob/main/docs/bccd.LICENSE) ![b](bccd.jpg)'),
        ('[a](../SECURITY.md#code)', '[a](generated/security.md#code)'),
        ('[`SE`](blocks.md#se) [all](blocks.md)', '[`SE`](generated/blocks/SE.md) [all](blocks.md)'),
    ],
)  # fmt: skip
def test_links_of_a_page_lead_to_pages_or_to_the_repository(text, expected):
    assert rewrite(text) == (text if expected is None else expected)


def test_links_of_a_document_that_becomes_a_page():
    page = ROOT / 'CHANGELOG.md'
    assert (
        rewrite('[a](docs/guide.md) [b](SECURITY.md)', page) == '[a](../guide.md) [b](security.md)'
    )


def test_a_dead_link_is_named():
    with pytest.raises(links.DeadLink, match=r'docs/guide.md: nowhere.md does not exist'):
        rewrite('[a](nowhere.md)')


def test_patterns_that_match_no_page_are_left_out(tmp_path):
    (tmp_path / 'a1.md').touch()
    assert links.drop_empty_patterns('start\na*\nb/*\n', tmp_path) == 'start\na*\n'


def test_markdown_of_plain_texts():
    assert escape('a_b * `c_d` [x]') == r'a\_b \* `c_d` \[x\]'
    assert table(['a'], [['b|c']]).splitlines()[2] == r'| b\|c |'


def test_the_model_zoo_has_every_model_and_no_figure_of_others_as_ours():
    entries = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text(encoding='utf-8'))[
        'Models'
    ]
    lines = model_zoo.page('https://host/us').splitlines()
    rows = {
        line.split(' | ')[0].strip('| `'): line.split(' | ')
        for line in lines
        if line.startswith('| `')
    }
    assert set(rows) == {entry['Name'] for entry in entries}
    for entry in entries:
        cells = rows[entry['Name']]
        assert (cells[3] == 'not trained here') == (not entry['Results'])
        assert ('download' in cells[5]) == bool(entry.get('Weights'))
        for result in entry['Results']:
            name, value = next(iter(result['Metrics'].items()))
            assert f'{name} {model_zoo._value(value)}' in cells[3] and 'seed' in cells[3]
        for figure in entry['Published']:
            assert escape(figure['Source']) in cells[4]


def test_the_page_of_a_block_has_the_row_of_its_cost_and_of_its_results():
    (info,) = blocks.list_blocks('contextblock')
    text = blocks.page(info, 'https://host/us')
    costs = (DOCS / 'costs.md').read_text(encoding='utf-8')
    for name in 'gc', 'gc_r4':
        row = re.search(rf'^\| `{name}` \|.*$', costs, re.MULTILINE)[0]
        assert row in text
    assert '`retinanet_r18_gc_bccd`' in text and 'cbam' not in text
    assert '[xvjiarui/GCNet](https://github.com/xvjiarui/GCNet)' in text


# ---- the figure of the positions ----
class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        for k in 1, 2, 3:
            self.add_module(f'conv{k}', nn.Conv2d(4, 4, 1))
            self.add_module(f'bn{k}', nn.BatchNorm2d(4))
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + x)


class Mark(nn.Module):
    """A block that says when it runs."""

    order: list = []  # noqa: RUF012

    def __init__(self, in_channels, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        self.order.append(self.name)
        return x


def test_the_figure_has_the_positions_in_the_order_in_which_they_run():
    network = nn.Module()
    network.layer1, network.layer2 = (nn.Sequential(Bottleneck(), Bottleneck()) for _ in range(2))
    network.forward = lambda x: network.layer2(network.layer1(x))
    names = re.findall(r'@(\w+)', ' '.join(positions.SEQUENCE))
    stages = dict(stages=(True, False))
    plugins = [
        dict(
            cfg=dict(type=Mark, in_channels=4, name=name, postfix=f'_{name}'),
            position=name,
            **stages,
        )
        for name in names
    ]
    for plugin in plugins:
        if plugin['position'] != 'after_stage':
            plugin['blocks'] = (-1,)
    mmattn.insert(network, plugins)
    last = network.layer1[1]
    for layer in 'conv1', 'conv2', 'conv3':
        last.get_submodule(layer).register_forward_hook(lambda *_, n=layer: Mark.order.append(n))
    network.eval()(torch.randn(1, 4, 5, 6))
    drawn = [word.strip('@') for item in positions.SEQUENCE for word in item.split(' @')]
    drawn = [word for word in drawn if word in {*names, 'conv1', 'conv2', 'conv3'}]
    assert [n for n in Mark.order if n != 'before_add'] == [n for n in drawn if n != 'before_add']
    assert abs(Mark.order.index('before_add') - Mark.order.index('after_conv3')) == 1


def test_the_figure_is_drawn_by_the_command_that_the_page_names():
    assert (DOCS / 'positions.svg').read_text(encoding='utf-8') == positions.draw()
    assert (
        'python -m site_pages.positions docs/positions.svg' in (DOCS / 'positions.md').read_text()
    )


def code_of(name):
    return re.findall(
        r'^```python\n(.*?)^```',
        (DOCS / name).read_text(encoding='utf-8'),
        re.MULTILINE | re.DOTALL,
    )


def test_the_code_of_the_first_page_runs_as_it_is_written(capsys):
    names = {}
    for code in code_of('start.md'):
        exec(code, names)
    assert names['y'].shape == (2, 64, 32, 48)
    printed = capsys.readouterr().out
    assert "['0.se']" in printed and 'torch.Size([1, 16])' in printed


def test_the_plugins_of_the_page_of_positions_fit_a_resnet():
    from mmdet.models.backbones import ResNet

    (code,) = code_of('positions.md')
    names = {}
    exec(code, names)
    model = nn.Module()
    model.backbone = ResNet(50)
    model.forward = lambda x: model.backbone(x)
    assert len(mmattn.insert(model, names['plugins'])) == 16 + 3 + 3 + 3
