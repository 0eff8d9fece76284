"""What a network costs: counts equal to real runs, memory near the real peak."""

import importlib.util
import json
from pathlib import Path

import cv2
import mmseg
import pytest
import torch

from mmattn.analysis import cost as module
from mmattn.analysis.cost import kept_bytes, measure_cost
from mmattn.analysis.cost_report import DoesNotFit, report_cost
from mmattn.benchmarks.overhead import loss
from mmattn.benchmarks.timing import peak_bytes, saved_bytes
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.plugins.dry_run import _boxes, run_parts
from mmattn.plugins.flops import flop_counter
from tests.conftest import ROOT

CCNET = ROOT / 'configs' / 'ccnet_r18_street.py'
DETECTORS = [('mask_rcnn_r18_street', 'cbam'), ('retinanet_r18_bccd', 'gc')]
CASES = [('ccnet_r18_street', None), ('ann_r18_street', 'se'), *DETECTORS]
CASES += [('retinanet_r18_bccd', 'dcn'), ('retinanet_r18_bccd', 'dcnv2')]
SIZE = (96, 160)


@pytest.mark.parametrize('name, attention', CASES)
def test_counts_are_those_of_a_real_run(name, attention):
    config = ROOT / 'configs' / f'{name}.py'
    found = measure_cost(config, attention=attention, size=SIZE, latency=False)
    model, _ = build_network(config, None, attention)
    image = torch.randn(1, 3, *SIZE)
    with flop_counter() as counter, torch.no_grad():
        run_parts(model.eval(), image)
    whole = found.rows[0]
    if 'mask_rcnn' not in name and 'dcn' not in str(attention):  # which run compiled operators
        assert whole.macs == counter.get_total_flops() // 2
    model.train()
    run = lambda x: run_parts(model, x, _boxes(model))  # noqa: E731
    real = saved_bytes(run, [image], [*model.parameters()])
    assert whole.saved_bytes - image.nbytes == pytest.approx(
        real, abs=5000
    )  # regions, of its pooling
    assert whole.parameters == sum(p.numel() for p in model.parameters())


def test_parts_and_blocks_are_told_apart():
    found = measure_cost(CCNET, attention='se', size=SIZE, latency=False)
    rows = {row.path: row for row in found.rows}
    assert list(rows)[:4] == ['', 'backbone.stem', 'backbone.layer1', 'backbone.layer2']
    blocks = [row.path for row in found.rows if row.block]
    assert 'decode_head.cca' in blocks and len(blocks) == 9
    assert not any(
        row.block for row in found.rows if row.path.count('.') < 2 and 'cca' not in row.path
    )
    parts = [row for row in found.rows if not row.block and row.path]
    assert sum(row.parameters for row in parts) == rows[''].parameters
    assert sum(row.macs for row in parts) == rows[''].macs
    assert sum(row.saved_bytes for row in parts) == pytest.approx(rows[''].saved_bytes, rel=0.05)
    stage = rows['backbone.layer1']
    inside = [row for row in found.rows if row.path.startswith('backbone.layer1.')]
    assert 0 <= sum(row.saved_bytes for row in inside) < stage.saved_bytes
    assert rows['decode_head.cca'].saved_bytes > 0
    assert rows['decode_head.cca'].runs == 1 and rows[''].runs == 1


def test_lists_of_parts_are_looked_into():
    """A list is not run itself: what is in it is."""
    name = 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'
    config = Path(mmseg.__file__).parent / '.mim' / 'configs' / name
    whole, *parts = measure_cost(config, size=SIZE, latency=False).rows
    assert parts[0].path == 'backbone.layers.0.0' and all(row.runs == 1 for row in parts)
    assert sum(row.parameters for row in parts) == whole.parameters
    assert sum(row.macs for row in parts) == whole.macs > 0


@pytest.mark.parametrize('name, attention', DETECTORS)
def test_memory_is_near_the_peak_of_a_real_step(name, attention):
    config = ROOT / 'configs' / f'{name}.py'
    size = (256, 320)  # smaller ones leave hardly more than the parameters
    memory = measure_cost(config, attention=attention, size=size, batch=2, latency=False).memory
    model, _ = build_network(config, None, attention)
    model.train()
    image = torch.randn(2, 3, *size)

    def step() -> None:
        loss(model, image).backward()
        model.zero_grad()  # or the next step begins by freeing them

    above = 0.4 if 'mask' in name else 0.1  # its mask head is counted with all boxes it could see
    assert 0.9 < memory.backward / peak_bytes(step) < 1 + above
    assert memory.weights == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=0.01)
    assert memory.optimizer == 2 * memory.gradients  # of AdamW


@pytest.mark.parametrize('block', ['bam', 'sk'])
def test_blocks_that_cannot_be_trained_on_one_image(block):
    config = ROOT / 'configs' / 'retinanet_r18_bccd.py'
    arguments = dict(attention=block, size=(64, 96), latency=False)
    whole = measure_cost(config, **arguments).rows[0]
    assert 0 < whole.saved_bytes <= kept_bytes(config, attention=block, size=(64, 96))
    with pytest.raises(UsageError, match='batch size 1'):
        measure_cost(config, batch=1, **arguments)


def test_memory_grows_with_the_batch():
    one, four = (measure_cost(CCNET, size=SIZE, batch=n, latency=False).memory for n in (1, 4))
    assert (
        four.saved_bytes == pytest.approx(4 * one.saved_bytes, rel=0.03)
        and four.weights == one.weights
    )
    assert measure_cost(CCNET, size=SIZE, latency=False).batch == 4  # the config's


def test_times_of_parts_are_within_the_whole(monkeypatch):
    monkeypatch.setattr(module, '_MAX_SECONDS', 0)
    found = measure_cost(CCNET, size=SIZE)
    whole, *rest = found.rows
    assert all(row.ms > 0 for row in rest)
    assert sum(row.ms for row in rest if not row.block) <= whole.ms


def tool(argv):
    spec = importlib.util.spec_from_file_location('tool_cost', ROOT / 'tools' / 'cost.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made.main(argv)


def test_table_json_and_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, '_MAX_SECONDS', 0)
    out, plot = tmp_path / 'cost.json', tmp_path / 'cost.png'
    arguments = ['--attention', 'cbam', '--size', '64', '128', '--batch', '2']
    files = ['--json', str(out), '--plot', str(plot)]
    assert tool([str(CCNET), *arguments, *files]) == 0
    shown = capsys.readouterr().out
    assert 'one image of 128x64' in shown and '9 attention blocks: ' in shown
    assert 'training with 2 images a device needs about' in shown and 'fits in' in shown
    content = json.loads(out.read_text())
    assert len(content['rows']) == 17 and content['size'] == [64, 128]
    assert cv2.imread(str(plot)).std() > 5


def test_blocks_are_compared_with_the_plain_network(tmp_path, capsys):
    out = tmp_path / 'costs.json'
    flags = ['--size', '64', '128', '--no-latency', '--json', str(out)]
    assert tool([str(CCNET), '--compare', 'se,se+gc', *flags]) == 0
    shown = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert list(content) == ['none', 'se', 'se+gc']
    plain, se, both = (content[name]['rows'][0]['parameters'] for name in content)
    assert f'| `se` | {se:,} ({se - plain:+,}) |' in shown
    table = [line for line in shown.splitlines() if line.startswith('|')]
    assert ' ms |' not in table[0] and all(line.count('|') == 7 for line in table)
    assert f'| `se+gc` | {both:,} ({both - plain:+,}) |' in shown and plain < se < both
    assert f'| `none` | {plain:,} |' in shown and 'training with 4 images, GB' in shown
    saved = {name: cost['rows'][0]['saved_bytes'] for name, cost in content.items()}
    kept = {name: cost['kept_bytes'] for name, cost in content.items()}
    assert kept['none'] == saved['none'] <= saved['se'] < kept['se'] < kept['se+gc']
    assert saved['se'] < 1.01 * saved['none']  # its weights alone
    with pytest.raises(SystemExit):
        tool([str(CCNET), '--compare', 'se', '--attention', 'gc'])


def test_gates_in_a_frozen_stage_save_little():
    """Gates learn there, so that autograd would keep all that the stage computes."""
    config = ROOT / 'configs' / 'mask_rcnn_r18_street.py'
    options = {'model.backbone.frozen_stages': 1, 'model.backbone.norm_eval': True}
    arguments = dict(size=SIZE, latency=False, options=options)
    plain = measure_cost(config, **arguments).rows[0].saved_bytes
    for name in 'se', 'cbam', 'sge', 'sa':
        saved = measure_cost(config, attention=name, **arguments).rows[0].saved_bytes
        assert plain < saved < 1.06 * plain, name


def test_what_does_not_fit_is_said_and_has_an_exit_code(tmp_path, capsys):
    arguments = [str(CCNET), '--size', '128', '256', '--no-latency', '--memory-limit', '0.01']
    assert tool([*arguments, '--json', str(tmp_path / 'cost.json')]) == 6
    shown = capsys.readouterr()
    assert 'does not fit in 0.0 GB. Lower the batch size' in shown.err
    assert 'decode_head.cca' in shown.out and (tmp_path / 'cost.json').is_file()


def test_a_whole_cityscapes_image_is_counted_without_being_run():
    config = ROOT / 'configs' / 'ccnet_r101_cityscapes.py'
    with pytest.raises(DoesNotFit, match='needs about .* GB'):
        report_cost(config, size=(1024, 2048), batch=8, memory_limit=24, latency=False)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(size=(0, 64)), r'--size \(0, 64\)'),
        (dict(batch=0), '--batch 0'),
        (dict(memory_limit=-1.0), '--memory-limit -1.0: allowed are GB above 0'),
        (dict(device='cuda:7'), '--device cuda:7'),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        measure_cost(CCNET, latency=False, **arguments)
