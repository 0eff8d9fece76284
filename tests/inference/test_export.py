"""Exported programs compute what the networks compute, at sizes they were not made at."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mmattn.benchmarks.cases import perturb_constants
from mmattn.cli.main import main
from mmattn.config.load import load_config
from mmattn.engine.network import build_network
from mmattn.errors import DataError, UsageError
from mmattn.inference import export as module
from mmattn.inference.export import ExportMismatch, describe, export
from mmattn.inference.predictor import Predictor
from tests.conftest import ROOT
from tests.documents import code_blocks, commands

CONFIGS = ROOT / 'configs'
CCNET = CONFIGS / 'ccnet_r18_street.py'


def checkpoint(config, path, attention=None, options=None):
    torch.manual_seed(0)
    model, _ = build_network(config, options, attention)
    torch.save(dict(state_dict=perturb_constants(model).state_dict()), path)
    return path


@pytest.fixture
def photos(tmp_path):
    found, generator = [], np.random.default_rng(0)
    for name, size in dict(wide=(96, 160), high=(161, 99)).items():
        image = cv2.GaussianBlur(generator.integers(0, 255, (*size, 3), np.uint8), (5, 5), 0)
        found.append(tmp_path / f'{name}.png')
        cv2.imwrite(str(found[-1]), image)
    return found


@pytest.mark.parametrize('name', ['ccnet_r18_street', 'ann_r18_street'])
def test_segmentors_become_onnx_that_labels_as_they_do(name, photos, tmp_path):
    config = CONFIGS / f'{name}.py'
    weights = checkpoint(config, tmp_path / 'weights.pth')
    found = export(config, weights, 'onnx', out=tmp_path / 'net.onnx', images=photos)
    assert set(found.differences) == {(96, 160), (161, 99)} and found.left_out == ''
    assert max(found.differences.values()) < 1e-4
    assert '160x96: largest difference to torch' in describe(found)
    onnx.checker.check_model(onnx.load(str(found.path)))
    session = onnxruntime.InferenceSession(str(found.path), providers=['CPUExecutionProvider'])
    predictor = Predictor.of(config, weights, device='cpu')
    images = [cv2.imread(str(path)) for path in photos]
    for image in images:  # as a user would: the image as OpenCV reads it
        x = image.transpose(2, 0, 1)[None].astype(np.float32)
        (logits,) = session.run(['logits'], dict(image=x))
        wanted = predictor(image)
        assert np.abs(logits[0] - wanted.seg_logits.data.numpy()).max() < 1e-3
        assert (logits[0].argmax(0) == wanted.pred_sem_seg.data[0].numpy()).mean() > 0.999
    pair = np.concatenate([x, x, x])
    assert session.run(['logits'], dict(image=pair))[0].shape == (3, *logits.shape[1:])


def test_a_detector_is_exported_up_to_its_first_head(tmp_path):
    config = CONFIGS / 'retinanet_r18_bccd.py'
    weights = checkpoint(config, tmp_path / 'weights.pth', 'cbam')
    found = export(config, weights, 'torch', out=tmp_path / 'net.pt2', attention='cbam')
    assert found.outputs[0] == 'feature0' and found.outputs[-1] == 'delta4'
    assert len(found.outputs) == 15 and max(found.differences.values()) < 1e-4
    assert 'not in it: boxes, their selection' in describe(found)
    assert 'onedl-mmdeploy exports whole detectors: https://github.com/' in describe(found)
    program = torch.export.load(found.path).module()
    model = Predictor.of(config, weights, attention='cbam', device='cpu').model
    image = torch.rand(3, 3, 288, 320) * 255
    normal = (image.flip(1) - model.data_preprocessor.mean) / model.data_preprocessor.std
    with torch.no_grad():
        maps = model.extract_feat(normal)
        scores, deltas = model.bbox_head(maps)
    for one, other in zip(program(image), (*maps, *scores, *deltas), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('block', ['dcn', 'dcnv2'])
def test_deformable_convolutions_need_no_compiled_operator(block, tmp_path):
    config = CONFIGS / 'retinanet_r18_bccd.py'
    (plugin,) = load_config(config, attention=block).model.plugins
    plugin.replace = 'backbone.layer3.*.conv2'  # of the three stages; they differ in width alone
    options = {'model.plugins': [plugin.to_dict()]}
    weights = checkpoint(config, tmp_path / 'weights.pth', options=options)
    found = export(config, weights, 'torch', out=tmp_path / 'net.pt2', options=options)
    assert max(found.differences.values()) < 1e-4  # to MMCV's kernels
    program = torch.export.load(found.path)
    assert not [n for n in program.graph.nodes if 'deform' in str(n.target)]


@pytest.mark.parametrize('factor, said', [(1.01, '1.0e-02'), (float('nan'), 'nan')])
def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch, photos, factor, said):
    """Also where a later image, of the same size, is right."""
    weights = checkpoint(CCNET, tmp_path / 'weights.pth')
    factors = iter([factor, 1])

    def wrong(program, example, shapes, config):
        return (lambda path: path.touch()), lambda x: [next(factors) * program(x)]

    monkeypatch.setattr(module, 'export_torch', wrong)
    with pytest.raises(ExportMismatch, match=f'differs from torch by {said} of the largest value'):
        export(CCNET, weights, 'torch', out=tmp_path / 'net.pt2', images=[photos[0], photos[0]])
    assert not (tmp_path / 'net.pt2').exists()


@pytest.mark.parametrize(
    'arguments, kind, message',
    [
        (dict(kind='tflite'), UsageError, '--format tflite: allowed are onnx, torch'),
        (dict(out='net.onnx'), UsageError, 'the name of a torch file ends in .pt2'),
        (dict(images=['none.png']), DataError, 'none.png does not exist'),
        (dict(images=['dot.png']), UsageError, '8x8 is too small to compare with: .* 16 and more'),
    ],
)
def test_refused(tmp_path, monkeypatch, arguments, kind, message):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('dot.png', np.zeros((8, 8, 3), np.uint8))
    weights = checkpoint(CCNET, tmp_path / 'weights.pth')
    with pytest.raises(kind, match=message):
        export(CCNET, weights, **(dict(kind='torch') | arguments))


def test_the_page(photos, tmp_path, monkeypatch):
    """The code of docs/export.md runs after its command, in both formats."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
    weights = checkpoint(CCNET, tmp_path / 'best.pth')
    photos[0].rename('photo.png')
    ((name, _, _, *options),) = commands(page)
    assert name == 'export' and options[0] == '--images'
    for kind in ('onnx', 'torch'):
        flags = ['--images', 'photo.png', '--format', kind]
        assert main([name, str(CCNET), str(weights), *flags]) == 0
    assert {'ccnet_r18_street.onnx', 'ccnet_r18_street.pt2'} <= {p.name for p in tmp_path.iterdir()}
    names = {}
    for block in code_blocks(page, 'python'):
        exec(compile(block, 'export.md', 'exec'), names)
    assert names['logits'].shape == (1, 19, 96, 160)
    assert names['labels'].shape == names['expected'].shape == (96, 160)
