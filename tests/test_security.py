"""Files of strangers: every tool that reads one refuses it with its exit code, and runs nothing of it.

What would run makes a folder, the marker, which must not be there afterwards.
"""

import json
import os
import pickle
import re
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ROOT, randomise
from tests.test_tools import in_the_project, tool  # noqa: F401

CONFIG = 'configs/ccnet_r18_street.py'
DETECTOR = 'configs/mask_rcnn_r18_street.py'
READERS = ('resume', 'init_from', 'test', 'infer', 'publish', 'view_attention', 'export')
SMALL = dict(x=torch.zeros(1))  # weights that fit nothing
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / 'marker'
    yield path
    assert not path.exists(), 'a file of a stranger was executed'


@pytest.fixture(scope='module')
def weights():
    """Of the network of CONFIG, drawn at random."""
    from mmengine.registry import MODELS, init_default_scope

    from mmattn.config.leaves import replace_type
    from mmattn.config.load import load_config

    cfg = load_config(ROOT / CONFIG)
    replace_type(cfg.model, 'SyncBN', 'BN')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return randomise(MODELS.build(cfg.model)).state_dict()


# ---- pickles -------------------------------------------------------------------------------------
@pytest.mark.parametrize('reader', READERS)
def test_a_pickle_with_code(reader, call, marker, tmp_path):
    torch.save(dict(state_dict=SMALL, meta=dict(note=Payload(marker))), tmp_path / 'bad.pth')
    said = call(reader, checkpoint=tmp_path / 'bad.pth')
    assert said.code == 4
    assert re.search(r'bad.pth holds more .*\(\w+.mkdir\): it is refused', said.errors[0])


@pytest.mark.parametrize('member', ['state_dict', 'meta', 'optimizer', 'message_hub', 'rng', None])
@pytest.mark.parametrize('kind', ['archive', 'old', 'plain'])
def test_code_in_any_part_and_any_form_of_a_checkpoint(member, kind, marker, tmp_path):
    from mmengine.runner import load_checkpoint

    from mmattn.checkpoint.read import read_checkpoint
    from mmattn.config import safe_files
    from mmattn.errors import CheckpointError

    safe_files.install()
    content, path = dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'bad.pth'
    content = content | {member: dict(x=[Payload(marker)])} if member else Payload(marker)
    if kind == 'plain':
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == 'archive')
    net = torch.nn.Linear(1, 1)
    for read in read_checkpoint, lambda p: load_checkpoint(net, str(p)):  # mmengine's own
        with pytest.raises(CheckpointError, match='refused|damaged'):
            read(path)
        assert not marker.exists()


@pytest.mark.parametrize(
    'option, code',
    [
        ('load_from={}', 4),
        ('model.backbone.init_cfg.checkpoint={} model.backbone.init_cfg.type=Pretrained', 4),
        ('model.decode_head.loss_decode.class_weight={}', 3),
    ],
)  # fmt: skip
def test_a_pickle_that_a_config_names(option, code, call, marker, tmp_path):
    path = tmp_path / ('bad.pth' if code == 4 else 'bad.pkl')
    content = pickle.dumps(Payload(marker))
    torch.save(dict(state_dict=Payload(marker)), path) if code == 4 else path.write_bytes(content)
    said = call('train', options=option.format(path).split())
    assert said.code == code and re.search('refused', said.errors[0]), said.text[-2000:]


def test_what_mmengine_loads_and_dumps(marker, tmp_path):
    import mmengine

    from mmattn.config import safe_files
    from mmattn.errors import DataError

    safe_files.install()
    for name, kind in ('a.pkl', None), ('a.pickle', None), ('a.txt', 'pkl'):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
        with pytest.raises(DataError, match='is a pickle: it is refused'):
            mmengine.load(str(tmp_path / name), file_format=kind)
    mmengine.dump([1, (2, 3)], str(tmp_path / 'own.pkl'))  # as tools/test.py --out does
    assert pickle.loads((tmp_path / 'own.pkl').read_bytes()) == [1, (2, 3)]
    mmengine.dump(dict(a=(1, 2)), str(tmp_path / 'own.yaml'))
    assert mmengine.load(str(tmp_path / 'own.yaml')) == dict(a=[1, 2])


# ---- configs in checkpoints ----------------------------------------------------------------------
CODE = 'import os\nos.mkdir({!r})\nmodel = dict()\n'
SOUND = dict(
    names='se', plugins=[dict(cfg=dict(type='mmattn.SE'), position='after_conv2')], backbone={}
)


def written(path, weights, about):
    """Weights with notes, as .pth or .safetensors."""
    if path.suffix == '.pth':
        torch.save(dict(state_dict=weights, meta=about), path)
    else:
        save_file(weights, path, metadata=dict(mmattn=json.dumps(about)))
    return path


@pytest.mark.parametrize('reader', ['resume', 'test', 'infer', 'publish', 'view_attention', 'export'])  # fmt: skip
def test_a_config_in_a_checkpoint_is_not_evaluated(reader, call, marker, weights, tmp_path):
    """Checkpoints of older versions of MMSegmentation hold one: they are read without it."""
    text = CODE.format(str(marker))
    about = dict(config=text, cfg=text, epoch=0, iter=1, seed=1)
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    torch.save(dict(state_dict=weights, meta=about, message_hub=hub), tmp_path / 'a.pth')
    said = call(reader, checkpoint=tmp_path / 'a.pth')
    assert said.code == 0, said.text[-2000:]


@pytest.mark.parametrize('reader', ['resume', 'test', 'infer', 'publish', 'view_attention', 'export'])  # fmt: skip
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_function_for_a_block_in_a_checkpoint(reader, suffix, call, marker, tmp_path):
    """mmengine builds a `type` with a path by importing it and calling what it finds."""
    start = dict(type='os.mkdir', path=str(marker))  # called when the weights are initialised
    about = dict(attention=SOUND | dict(backbone=dict(init_cfg=[start])))
    said = call(reader, checkpoint=written(tmp_path / f'a{suffix}', SMALL, about))
    assert said.code == 4
    assert "backbone.init_cfg[0].type is 'os.mkdir', which is not registered" in said.errors[0]


@pytest.mark.parametrize(
    'attention, why',
    [
        (dict(names='../../elsewhere'), "attention.names is '../../elsewhere'"),
        (dict(names='/etc/se'), "attention.names is '/etc/se'"),
        (dict(names=7), 'attention.names is 7'),
        (dict(plugins='se'), "attention.plugins is 'se'"),
        (dict(plugins=[7]), r'attention.plugins is \[7\]'),
        (dict(backbone=None), 'attention.backbone is None'),
        (dict(backbone=dict(type='subprocess.Popen')), "backbone.type is 'subprocess.Popen'"),
        (dict(backbone=dict(type='mmengine.load')), "backbone.type is 'mmengine.load'"),
        (dict(backbone=dict(type='os.system')), "backbone.type is 'os.system'"),
        (dict(backbone=dict(x=[dict(type=['os.mkdir'])])), r"backbone.x\[0\].type is \['os.mkdir'"),
        (dict(backbone=dict(nms=dict(type='__import__("os").mkdir("x")'))), 'nms.type is '),
        (dict(backbone=dict(type='RFSearchHook')), "backbone.type is 'RFSearchHook'"),
    ],
)
def test_attention_that_no_run_wrote(attention, why, call, tmp_path):
    about = dict(attention=SOUND | attention)
    path = written(tmp_path / 'a.safetensors', SMALL, about)
    before = sorted(tmp_path.parent.rglob('*.safetensors'))
    said = call('publish', checkpoint=path)
    assert said.code == 4 and re.search(why, said.errors[0]), said.text
    assert sorted(tmp_path.parent.rglob('*.safetensors')) == before


@pytest.mark.parametrize(
    'data, why',
    [
        (dict(name='../../elsewhere', classes=['a']), "data_set.name is '../../elsewhere'"),
        (dict(name='a', classes='a'), "data_set.classes is 'a'"),
        (dict(name='a', classes=[7]), r'data_set.classes is \[7\]'),
        ('a', "data_set is 'a'"),
    ],
)
def test_a_data_set_that_no_run_wrote(data, why, tmp_path):
    from mmattn.checkpoint.read import open_checkpoint
    from mmattn.errors import CheckpointError

    path = written(tmp_path / 'a.pth', SMALL, dict(data_set=data))
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(path, training_state=False)


@pytest.mark.parametrize('about', [[1], dict(attention='se'), dict(blocks=3), dict(dataset_meta=[1])])  # fmt: skip
def test_notes_that_no_run_wrote(about, call, tmp_path):
    said = call('publish', checkpoint=written(tmp_path / 'a.safetensors', SMALL, about))
    assert said.code == 4 and 'a.safetensors is refused: meta' in said.errors[0]


# ---- configs that are data -----------------------------------------------------------------------
TAKE_CONFIGS = (
    *('train', 'resume', 'init_from', 'test', 'infer', 'publish', 'view_attention', 'export'),
    *('cost', 'ablate', 'check_data'),
)
BASE = ROOT / 'configs' / 'ccnet_r18_street.py'


@pytest.mark.parametrize('name', TAKE_CONFIGS)
def test_a_tag_in_a_yaml_config(name, call, marker, tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_text(f'work_dir: x\na: !!python/object/apply:os.mkdir [{marker}]\n')
    said = call(name, path, written(tmp_path / 'a.pth', SMALL, {}))
    assert said.code == 2
    assert (
        "bad.yaml cannot be read: line 2: tag '!!python/object/apply:os.mkdir' is not allowed"
        in (said.errors[0])
    )


@pytest.mark.parametrize(
    'files, why',
    [
        ({'a.yaml': '_base_: evil.py'}, 'its parent evil.py is code'),
        ({'a.yaml': '_base_: [b.json]', 'b.json': '{"_base_": ["./evil.py"]}'}, 'evil.py is code'),
        ({'a.yaml': '_base_: "{{ fileDirname }}/evil.py"'}, 'is code'),
        ({'a.yaml': '"{{ $ENV:NONE:_base_ }}": evil.py'}, 'nothing uses it'),
        ({'a.yaml': '_base_: evil.txt'}, 'its parent evil.txt is code'),
        ({'a.yaml': '_base_: none.yaml'}, 'none.yaml does not exist'),
        ({'a.yaml': 'custom_imports: {imports: [evil]}'}, 'custom_imports executes code'),
        ({'a.yaml': 'default_scope: evil\nwork_dir: x'}, "default_scope='evil'"),
        ({'a.yaml': '_base_: BASE\nmodel: {_scope_: evil}'}, "model._scope_ is 'evil'"),
        ({'a.yaml': '- 1'}, 'holds a list, not keys and values'),
        ({'a.yaml': 'a: [1'}, 'cannot be read: line 1: '),
        ({'a.json': '{"a": 1'}, 'a.json cannot be read'),
        ({'a.py': '_base_ = "b.yaml"', 'b.yaml': 'a: !!python/name:os.mkdir'}, "tag '!!python/name"),
        (
            {'a.json': '{"_base_": "BASE", "work_dir": "x", "model": {"backbone": {"act_cfg": '
             '{"type": "os.mkdir", "path": "MARKER"}}}}'},
            "model.backbone.act_cfg.type is 'os.mkdir', which is not registered",
        ),
    ],
)  # fmt: skip
def test_a_config_of_data_executes_nothing(files, why, call, marker, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in 'evil.py', 'evil.txt':
        (tmp_path / name).write_text(CODE.format(str(marker)))
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace('BASE', str(BASE)).replace('MARKER', str(marker)))
    said = call('check_data', tmp_path / next(iter(files)))
    assert said.code == 2 and why in said.errors[0], said.text


@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
@pytest.mark.parametrize('base', [CONFIG, DETECTOR])
def test_a_config_of_data_is_as_good_as_python(suffix, base, tmp_path):
    from mmengine.fileio import dump

    from mmattn.config.check import check_config
    from mmattn.config.load import load_config

    content = dict(_base_=[str(ROOT / base)], train_cfg=dict(max_iters=7))
    dump(content, str(tmp_path / f'a{suffix}'))
    cfg = load_config(tmp_path / f'a{suffix}', attention='se')
    check_config(cfg)
    same = load_config(ROOT / base, {'train_cfg.max_iters': 7}, 'se')
    check_config(same)
    assert cfg.to_dict() == same.to_dict()
    cfg.dump(str(tmp_path / f'again{suffix}'))  # as a run writes it into its work dir
    again = load_config(tmp_path / f'again{suffix}')
    check_config(again)
    assert json.dumps(again.to_dict(), sort_keys=True) == json.dumps(cfg.to_dict(), sort_keys=True)


def test_a_placement_beside_a_config_of_data_is_not_executed(call, marker, tmp_path):
    folder = tmp_path / '_base_' / 'attention'
    folder.mkdir(parents=True)
    (folder / 'evil.py').write_text(CODE.format(str(marker)))
    (tmp_path / 'a.json').write_text(json.dumps(dict(_base_=str(BASE))))
    said = call('cost', tmp_path / 'a.json', options=['--attention', 'evil'])
    assert said.code == 2 and '--attention evil: no such placement' in said.errors[0]


def test_a_config_beside_published_weights_is_not_executed(marker, weights, tmp_path):
    from mmattn.errors import UsageError
    from mmattn.zoo import load_model
    from mmattn.zoo.publish import publish

    published = tmp_path / 'published'
    publish(ROOT / CONFIG, written(tmp_path / 'a.pth', weights, {}), published)
    for name in 'ccnet_r18_street.py', 'config.py', '__init__.py', 'hubconf.py':
        (published / name).write_text(CODE.format(str(marker)))
    model = load_model('ccnet_r18_street', published)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    for address in 'https://x.org/config.py', 'hf://someone/models/config.py':
        with pytest.raises(UsageError, match='configs are not downloaded, as they are code'):
            load_model(address, next(published.glob('*.safetensors')))


@pytest.mark.parametrize('seed', range(4))
def test_options_are_values(seed, marker):
    """Pieces of Python and of every bracket, in any order: values, or refused."""
    from mmattn.config.load import parse_options
    from mmattn.errors import UsageError

    rng, code = np.random.default_rng(seed), f'__import__("os").mkdir("{marker}")'
    pieces = [
        code,
        '(',
        ')',
        '[',
        ']',
        '{',
        '}',
        ',',
        '"',
        "'",
        '1',
        'nan',
        'x',
        ' ',
        '=',
        '\\',
        'é',
    ]
    for _ in range(150):
        text = ''.join(rng.choice(pieces, rng.integers(1, 9)))
        try:
            value = parse_options([f'a={text}'])['a']
        except UsageError:
            continue
        kinds = {type(v) for v in (value if isinstance(value, list | tuple) else [value])}
        assert kinds <= {int, float, bool, str, list, tuple, type(None)}
    assert parse_options([f'a={code}'])['a'] == code


# ---- names of files ------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['train', 'test', 'check_data'])
@pytest.mark.parametrize('listed', ['../../secret.png', '/etc/hostname'])
def test_a_file_name_that_leaves_its_set(name, listed, call, street, tmp_path):
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    Image.new('RGB', (128, 64)).save(root / 'secret.png')
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        content['images'][0]['file_name'] = listed
        path.write_text(json.dumps(content))
    said = call(name, DETECTOR, written(tmp_path / 'a.pth', SMALL, {}), root)
    found = re.search(rf"file_name '{listed}' of image \d+ leaves ", said.text)
    assert said.code == 3 and found, said.text[-2000:]


@pytest.mark.parametrize('name', ['train', 'test', 'check_data'])
def test_a_list_of_images_that_leaves_its_set(name, call, tmp_path):
    (tmp_path / 'list.txt').write_text('../../../secret\n')
    options = [f'{x}.dataset.ann_file={tmp_path}/list.txt' for x in LOADERS]
    path = written(tmp_path / 'a.pth', SMALL, {})
    said = call(name, checkpoint=path, options=options)
    assert said.code == 3 and re.search(r'secret_leftImg8bit.png, listed in .* leaves', said.text)


def test_a_prepared_set_whose_file_names_leave_it(tmp_path, capsys):
    for folder in 'images', 'annotations':
        (tmp_path / 'set' / folder).mkdir(parents=True)
    Image.new('RGB', (256, 256)).save(tmp_path / 'secret.png')
    image = dict(id=1, file_name='../../secret.png', width=256, height=256)
    nucleus = [dict(id=1, name='nucleus')]
    for split in 'train', 'val':
        path = tmp_path / 'set' / 'annotations' / f'{split}.json'
        path.write_text(json.dumps(dict(images=[image], annotations=[], categories=nucleus)))
    out = tmp_path / 'out'
    assert tool('prepare_data')(['dsb2018', f'--root={tmp_path}/set', f'--out={out}']) == 3
    assert "'../../secret.png' of image 1 leaves" in capsys.readouterr().err
    assert not list(out.rglob('*.png'))


NASTY = '<script>\x1b[2J\nerror: all is well'


def test_markup_and_control_characters_in_a_name(call, weights, street, tmp_path):
    """They reach neither the terminal nor the page as what they are."""
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    photo = min((root / 'leftImg8bit/train').rglob('*.png'))
    shutil.copy(photo, tmp_path / f'{NASTY.replace("/", "")}.png')
    bad = photo.with_name(f'{NASTY.replace("/", "")}_leftImg8bit.png')
    bad.write_bytes(b'<html>')
    label = str(bad).replace('leftImg8bit', 'gtFine', 1).replace('_leftImg8bit', '_gtFine_labelTrainIds')  # fmt: skip
    shutil.copy(min((root / 'gtFine/train').rglob('*_labelTrainIds.png')), label)
    path = written(tmp_path / 'a.pth', weights, {})
    for name in 'train', 'check_data', 'infer':
        said = call(name, checkpoint=path, root=root, image=bad.parent)
        assert said.code == 3 and '\x1b' not in said.text, name
        assert r'<script>\x1b[2J\nerror: all is well' in said.text, name
        assert len(said.errors) == 1, name
    said = call('view_attention', checkpoint=path, image=tmp_path / f'{NASTY.replace("/", "")}.png')
    assert said.code == 0, said.text
    page = (tmp_path / 'out' / 'attention.html').read_text()
    assert '<script>\\u001b' not in page and '\\u003cscript>\\u001b' in page


# ---- image bombs ---------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def bomb(tmp_path_factory):
    """A PNG of a few kB that declares a little more than 100 megapixels, half of Pillow's limit."""
    side = 10_001

    def chunk(kind, data):
        end = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + end

    head = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()
    path = tmp_path_factory.mktemp('bomb') / 'bomb.png'
    parts = chunk(b'IHDR', head), chunk(b'IDAT', rows), chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(parts))
    assert path.stat().st_size < 200_000
    return path


@pytest.fixture(autouse=True)
def nothing_huge(monkeypatch):
    """A decoded image of more than 100 megapixels ends the test."""
    read, decode, load = cv2.imread, cv2.imdecode, Image.Image.load

    def small(image):
        assert image is None or image.shape[0] * image.shape[1] <= 100e6, 'a bomb was decoded'
        return image

    def loaded(self):
        assert self.size[0] * self.size[1] <= 100e6, 'a bomb was decoded'
        return load(self)

    monkeypatch.setattr(cv2, 'imread', lambda *a, **k: small(read(*a, **k)))
    monkeypatch.setattr(cv2, 'imdecode', lambda *a, **k: small(decode(*a, **k)))
    monkeypatch.setattr(Image.Image, 'load', loaded)


@pytest.mark.parametrize('name', ['infer', 'view_attention', 'export'])
def test_a_bomb_to_look_at(name, call, bomb, weights, tmp_path):
    said = call(name, checkpoint=written(tmp_path / 'a.pth', weights, {}), image=bomb)
    assert said.code == 3 and 'bomb.png declares more than 100 megapixels' in said.text


@pytest.mark.parametrize('name', ['train', 'test', 'check_data'])
@pytest.mark.parametrize('config, kind', [(CONFIG, 'image'), (CONFIG, 'label'), (DETECTOR, 'image')])  # fmt: skip
def test_a_bomb_in_a_set(name, config, kind, call, bomb, street, tmp_path):
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    places = dict(image='leftImg8bit/{}/*/*.png', label='gtFine/{}/*/*_labelTrainIds.png')
    for split in 'train', 'test':
        shutil.copy(bomb, min(root.glob(places[kind].format(split))))
    said = call(name, config, written(tmp_path / 'a.pth', SMALL, {}), root)
    assert said.code == 3 and 'declares more than 100 megapixels' in said.text


@pytest.mark.parametrize('name', ['cityscapes', 'ade20k', 'bccd', 'dsb2018', 'camvid'])
def test_a_bomb_in_a_download(name, bomb, street, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / 'raw'
    if name == 'cityscapes':
        shutil.copytree(street, root)
        for path in root.rglob('*_labelTrainIds.png'):
            path.unlink()
        places = [min(root.rglob('gtFine/train/*/*_labelIds.png'))]
    elif name == 'bccd':
        places = [root / 'JPEGImages' / 'a.jpg']
        for split in 'train', 'val', 'test':
            places.append(root / 'ImageSets' / 'Main' / f'{split}.txt')
        places.append(root / 'Annotations' / 'a.xml')
    elif name == 'dsb2018':
        places = [root / 'stage1_train' / 'a' / 'images' / 'a.png']
    else:
        splits = ('train', 'val', 'test') if name == 'camvid' else ('training', 'validation')
        folders = ('images', 'labels') if name == 'camvid' else ('images', 'annotations')
        ends = ('.jpg', '.png')
        places = [root / f / s / f'a{end}' for f, end in zip(folders, ends) for s in splits]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('a') if place.suffix in ('.txt', '.xml') else shutil.copy(bomb, place)
    assert tool('prepare_data')([name, '--root', str(root)]) == 3
    assert 'declares more than 100 megapixels' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['prediction', 'truth'])
def test_a_bomb_to_score(kind, bomb, street, tmp_path, capsys):
    truth, found = tmp_path / 'truth', tmp_path / 'found'
    shutil.copytree(street / 'gtFine/val', truth)
    found.mkdir()
    for path in truth.rglob('*_labelIds.png'):
        name = path.name.replace('_gtFine_labelIds', '')
        shutil.copy(bomb if kind == 'prediction' else path, found / name)
        shutil.copy(bomb, path) if kind == 'truth' else None
    arguments = ['cityscapes', '--annotations', str(truth), '--predictions', str(found)]
    assert tool('evaluate')(arguments) == 3
    assert 'declares more than 100 megapixels' in capsys.readouterr().err


# ---- imported sets ----
def written_voc(root, label, image):
    """A set in Pascal VOC of three copies of an image, with one box of a label."""
    from xml.sax.saxutils import escape

    (root / 'a').mkdir(parents=True)
    box = ''.join(f'<{key}>{v}</{key}>' for key, v in dict(xmin=1, ymin=1, xmax=9, ymax=9).items())
    for name in 'xyz':
        shutil.copy(image, root / 'a' / f'{name}.png')
        text = f'<object><name>{escape(label)}</name><bndbox>{box}</bndbox></object>'
        path = root / 'a' / f'{name}.xml'
        path.write_text(f'<annotation><filename>{name}.png</filename>{text}</annotation>')


@pytest.mark.parametrize(
    'label',
    [
        '"""\nimport os; os.mkdir({!r})\n"""',
        "x'\nimport os; os.mkdir({!r})",
        '{{{{$MISSING:a"\'}}}}, os.mkdir({!r})',
        '{{{{ fileDirname }}}}',
    ],
)
def test_class_names_of_an_imported_set_are_text(label, marker, street, tmp_path, monkeypatch):
    from mmengine.config import Config

    monkeypatch.chdir(tmp_path)
    name = label.format(str(marker)).strip()
    written_voc(tmp_path / 'raw', name, min((street / 'leftImg8bit/test').rglob('*.png')))
    assert tool('import_data')(['shapes', '--from', 'raw']) == 0
    assert Config.fromfile('configs/shapes.py').metainfo.classes == (name,)


def test_a_bomb_and_paths_that_lead_out_of_an_imported_set(bomb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written_voc(tmp_path / 'raw', 'cell', bomb)
    assert tool('import_data')(['shapes', '--from', 'raw']) == 3
    assert 'declares more than 100 megapixels: 101. If it is meant' in capsys.readouterr().err
    (tmp_path / 'secret.png').write_bytes(bomb.read_bytes())
    (tmp_path / 'raw/a/x.png').unlink()
    path = tmp_path / 'raw/a/x.xml'
    path.write_text(path.read_text().replace('x.png', '../../secret.png'))
    assert tool('import_data')(['shapes', '--from', 'raw']) == 3
    assert 'x.xml: filename: ../../secret.png is missing' in capsys.readouterr().err


# ---- the sources ---------------------------------------------------------------------------------
FORBIDDEN = (
    r'\bpickle\.(load|loads|Unpickler)\b|\bjoblib\b|\bdill\b',
    r'torch\.load\((?!.*weights_only=True)',
    r'weights_only\s*=\s*False|safe_globals',
    r'(?<![\w.])(eval|exec)\(',
    r'yaml\.(load|unsafe_load|full_load)\(',
    r'\b(all_gather|broadcast|gather|scatter)_object(_list)?\b|collect_results',
    r'os\.system|shell=True',
    r'\b(tarfile|zipfile|unpack_archive|extractall)\b',
    r'allow_pickle\s*=\s*True|verify\s*=\s*False|_create_unverified_context',
)


@pytest.mark.parametrize('pattern', FORBIDDEN)
def test_the_sources_hold_none_of(pattern):
    """No reader of pickles, no pickles between processes, no unpacking of archives."""
    found = []
    for path in [*(ROOT / 'mmattn').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if re.search(pattern, line):
                found.append(f'{path.relative_to(ROOT)}:{number}: {line.strip()}')
    assert not found, found
