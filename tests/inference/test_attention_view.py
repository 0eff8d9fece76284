"""`tools/view_attention.py`: what it writes and what it refuses."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmattn.config.load import load_config
from mmattn.errors import DataError, UsageError
from mmattn.inference.attention_view import attention_views, view_attention
from mmattn.inference.predictor import Predictor
from tests.conftest import ROOT

CCNET = ROOT / 'configs' / 'ccnet_r18_street.py'
PLAIN = ROOT / 'configs' / 'fcn_r18_street.py'
DETECTOR = ROOT / 'configs' / 'mask_rcnn_r18_street.py'


def checkpoint(config, path, attention=None):
    cfg = load_config(config, attention=attention)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture
def photo(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.png'), image)
    return tmp_path / 'photo.png'


def content(page):
    text = page.read_text().split('id="data">')[1].split('</script>')[0]
    return json.loads(text)


def test_a_page_and_a_picture_for_every_map(photo, tmp_path):
    weights = checkpoint(CCNET, tmp_path / 'ccnet.pth')
    done = view_attention(CCNET, weights, photo, out_dir=tmp_path / 'out', query=(0.2, 0.9))
    found = content(done.page)
    assert found['query'] == [0.2, 0.9] and (found['width'], found['height']) == (128, 64)
    assert 'ccnet.pth' in found['about'] and 'photo.png' in found['about']
    (block,) = found['blocks']
    assert block['type'] == 'CrissCrossAttention' and len(block['views']) == 1
    assert len(block['views'][0]['rounds']) == 2
    (picture,) = done.pictures
    assert cv2.imread(str(picture)).shape == (64, 128, 3)


def test_the_image_is_what_the_network_saw(photo, tmp_path):
    predictor = Predictor.of(CCNET, checkpoint(CCNET, tmp_path / 'ccnet.pth'))
    image = cv2.imread(str(photo))
    assert np.array_equal(attention_views(predictor, image)[1], image)
    options = {'test_dataloader.dataset.pipeline.1.scale': (96, 96)}
    weights = checkpoint(DETECTOR, tmp_path / 'detector.pth', 'cbam')
    predictor = Predictor.of(DETECTOR, weights, options, 'cbam')
    seen, shown = attention_views(predictor, image)
    assert shown.shape == (64, 96, 3)  # 48 x 96, padded
    wanted = cv2.resize(image, (96, 48))
    assert np.abs(shown[:48].astype(int) - wanted).max() <= 1
    kinds = {view.kind for block in seen for view in block.views}
    assert len(seen) == 8 and kinds == {'bars', 'map'}


def test_windows_are_put_aside(photo, tmp_path):
    weights = checkpoint(CCNET, tmp_path / 'ccnet.pth')
    options = {'model.test_cfg': dict(mode='slide', crop_size=(32, 32), stride=(32, 32))}
    done = view_attention(CCNET, weights, photo, out_dir=tmp_path / 'out', options=options)
    assert len(content(done.page)['blocks'][0]['views']) == 1


@pytest.mark.parametrize(
    'config, image, query, kind, message',
    [
        (PLAIN, 'photo.png', (0.5, 0.5), UsageError, 'has no attention block to view'),
        (CCNET, 'none.png', (0.5, 0.5), DataError, 'none.png does not exist'),
        (CCNET, 'photo.png', (0.5, 1.0), UsageError, r'--query 0.5 1.0: allowed are fractions'),
    ],
)
def test_refused(photo, tmp_path, config, image, query, kind, message):
    weights = checkpoint(config, tmp_path / 'weights.pth')
    with pytest.raises(kind, match=message):
        view_attention(config, weights, tmp_path / image, out_dir=tmp_path / 'out', query=query)
