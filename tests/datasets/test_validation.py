import logging
import shutil
import zlib

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmattn.datasets.build import build_dataset
from mmattn.datasets.label_maps import LabelMaps
from mmattn.datasets.validation import check_classes, check_data
from mmattn.errors import DataError, UsageError

TRAIN = 'street_000001_000000'


@pytest.fixture
def broken(street, tmp_path):
    """A copy of the tiny set to damage, its image and its label map, and a check of it."""
    init_default_scope('mmseg')
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    image = root / 'leftImg8bit/train/street' / f'{TRAIN}_leftImg8bit.png'
    label = root / 'gtFine/train/street' / f'{TRAIN}_gtFine_labelTrainIds.png'

    def check(**options):
        prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
        leaf = dict(type='CityscapesDataset', data_root=str(root), data_prefix=prefix, **options)
        check_data(dict(type='RepeatDataset', times=2, dataset=leaf), 'train_dataloader')

    return root, image, label, check


@pytest.fixture
def said(monkeypatch):
    """What goes to the log as a warning."""
    lines = []

    def note(text, *, logger, level):
        assert (logger, level) == ('current', logging.WARNING)
        lines.append(text)

    monkeypatch.setattr('mmattn.log.print_log', note)
    return lines


@pytest.fixture
def plain(tmp_path):
    """A check of two label maps, given as arrays, under classes of your own."""
    init_default_scope('mmseg')
    root = tmp_path / 'plain'

    def check(first, second, classes='abc', where='train_dataloader', **options):
        for kind in 'images', 'labels':
            (root / kind).mkdir(parents=True, exist_ok=True)
        for stem, values in dict(a=first, b=second).items():
            values = np.array(values, np.uint8)
            Image.new('RGB', values.shape[::-1]).save(root / 'images' / f'{stem}.jpg')
            Image.fromarray(values).save(root / 'labels' / f'{stem}.png')
        leaf = dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            metainfo=dict(classes=tuple(classes)),
        )
        check_data(leaf | options, where)
        return leaf | options

    check.root = root
    return check


def test_a_sound_set_passes_and_the_verdict_is_kept(broken, monkeypatch):
    *_, check = broken
    check()

    def look(*_, **__):
        raise AssertionError('looked at again')

    monkeypatch.setattr('mmattn.datasets.image_io.inspect_pair', look)
    check()
    with pytest.raises(AssertionError, match='looked at again'):
        check(reduce_zero_label=True)  # other labels are allowed then


def test_missing_root(broken):
    root, *_, check = broken
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r'does not exist. Make it with: python tools/prepare_data'):
        check()


def test_empty_folder(broken):
    root, *_, check = broken
    shutil.rmtree(root / 'leftImg8bit/train/street')
    with pytest.raises(DataError, match='no image'):
        check()


def test_half_a_set(broken):
    _, _, label, check = broken
    label.unlink()
    with pytest.raises(DataError, match=rf'1 of 4 images have no label map, e.g. .*{label.name}'):
        check()


def test_a_list_of_images(broken, tmp_path):
    *_, check = broken
    with pytest.raises(DataError, match=r'names.txt does not exist. Set ann_file.'):
        check(ann_file=str(tmp_path / 'names.txt'))
    (tmp_path / 'names.txt').write_text(f'street/{TRAIN}\nstreet/lost\n')
    with pytest.raises(DataError, match=r'1 of 2 images do not exist, e.g. .*lost_leftImg8bit.png'):
        check(ann_file=str(tmp_path / 'names.txt'))


def test_label_out_of_range(broken):
    _, _, label, check = broken
    values = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    values[3, 4:7] = 33
    cv2.imwrite(str(label), values)
    with pytest.raises(
        DataError,
        match=rf'label 33 \(3 px\) in .*{label.name} is no class \(allowed 0..18 and 255\). '
        'The labels must be train ids. Make it with: python tools/prepare_data.py street$',
    ):
        check()


def test_label_ids_instead_of_train_ids(broken, plain):
    root, *_, check = broken
    ids = Image.open(min((root / 'gtFine/train').rglob('*_labelIds.png')))
    found = np.unique(ids)
    wrong = ', '.join(rf'{v} \(\d+ px\)' for v in found[(found > 18) & (found < 255)])
    with pytest.raises(
        DataError,
        match=rf'labels {wrong} in .* are no classes .* \(and 3 more: python tools/check_data.py '
        r"CONFIG lists all\). Leave seg_map_suffix='_gtFine_labelIds.png' out: .*prepare_data.py",
    ):
        check(seg_map_suffix='_gtFine_labelIds.png')
    with pytest.raises(DataError, match='label ids of Cityscapes. .*prepare_data.py cityscapes'):
        plain([[0, 7, 26]], [[11, 33, 23]], classes='abcdefghijklmnopqrs')


def test_sixteen_bit_label(broken):
    _, _, label, check = broken
    cv2.imwrite(str(label), np.full((64, 128), 26001, np.uint16))
    with pytest.raises(
        DataError, match='mode I;16, not 8-bit single-channel: 16 bits a pixel, as instance ids'
    ):
        check()
    with pytest.raises(DataError, match="Leave seg_map_suffix='_gtFine_instanceIds.png' out"):
        check(seg_map_suffix='_gtFine_instanceIds.png')


def test_colour_label(broken):
    _, image, label, check = broken
    shutil.copy(image, label)
    with pytest.raises(DataError, match='mode RGB, not 8-bit'):
        check()


def test_jpeg_label(broken):
    _, _, label, check = broken
    Image.open(label).save(label, format='JPEG')
    with pytest.raises(DataError, match=rf'label map .*{label.name} is a JPEG'):
        check()


def test_palette_and_black_and_white_labels_are_indices(plain):
    plain([[0, 1, 255]], [[2, 2, 2]])
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(plain.root / 'labels/a.png')
    Image.fromarray(np.array([[True, False, True]])).save(plain.root / 'labels/b.png')
    leaf = dict(
        type='BaseSegDataset',
        data_root=str(plain.root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c')),
    )
    check_data(leaf, 'train_dataloader')
    with pytest.raises(DataError, match=r'label 2 \(1 px\) in .*a.png is no class'):
        check_data(leaf | dict(metainfo=dict(classes=('a', 'b'))), 'train_dataloader')
    with pytest.raises(DataError, match=r'label 1 \(2 px\) in .*b.png is no class'):
        (plain.root / 'images/a.jpg').unlink()
        check_data(leaf | dict(metainfo=dict(classes=('a',))), 'train_dataloader')


def test_label_of_another_size(broken):
    _, _, label, check = broken
    cv2.imwrite(str(label), np.zeros((32, 64), np.uint8))
    with pytest.raises(DataError, match='is 64x32, its image 128x64'):
        check()


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_the_size_is_that_after_exif_rotation(plain, orientation):
    shape = (4, 6) if orientation < 5 else (6, 4)  # of the label map
    plain(np.zeros(shape), np.ones((5, 6)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (6, 4)).save(plain.root / 'images/a.jpg', exif=exif)
    leaf = dict(type='BaseSegDataset', data_root=str(plain.root), metainfo=dict(classes=('a', 'b')))
    leaf['data_prefix'] = dict(img_path='images', seg_map_path='labels')
    assert cv2.imread(str(plain.root / 'images/a.jpg')).shape[:2] == shape
    check_data(leaf, 'train_dataloader')


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.99])
def test_image_cut_short(broken, keep):
    _, image, _, check = broken
    data = image.read_bytes()
    image.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf'image .*{image.name} (is cut short|cannot be read)'):
        check()


def test_a_damaged_label_map_that_pillow_decodes(broken):
    """It stops at the last row, before the checksum, so some damage changes labels in silence."""
    _, _, label, check = broken
    data, right = label.read_bytes(), np.asarray(Image.open(label))
    for at in range(len(data) // 2, len(data) - 40):
        label.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
        try:
            silent = not np.array_equal(np.asarray(Image.open(label)), right)
        except (OSError, SyntaxError):
            continue
        if silent:
            break
    else:
        pytest.skip('this Pillow notices')
    with pytest.raises(DataError, match=rf'label map .*{label.name} cannot be read: it is damaged'):
        check()


@pytest.mark.parametrize('kind', ['image', 'label'])
def test_page_instead_of_an_image(broken, kind):
    _, image, label, check = broken
    (image if kind == 'image' else label).write_text('<html>not found</html>')
    with pytest.raises(DataError, match='it is damaged or no image. Replace the file.'):
        check()


@pytest.mark.parametrize('side', [10_001, 16_000])  # Pillow refuses the second itself
@pytest.mark.parametrize('kind', ['image', 'label'])
def test_a_small_file_that_declares_a_huge_image(broken, kind, side):
    _, image, label, check = broken
    path = image if kind == 'image' else label
    data = bytearray(path.read_bytes())
    data[16:24] = side.to_bytes(4, 'big') * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf'{path.name} declares more than 100 megapixels'):
        check()


def test_masks_of_0_and_255_are_no_label_maps(plain, said):
    with pytest.raises(
        DataError,
        match="nothing but 0 and 255, as black and white masks do, but 0 means 'a' and 255 is "
        r'ignored. Write the number of its class into each pixel, 0..2.',
    ):
        plain([[0, 255]], [[255, 0]])
    plain([[0, 255]], [[1, 0]])  # one class more in one map
    assert not said
    plain([[0, 0]], [[0, 0]])  # nothing but one class
    assert "every pixel is 'a', so there is nothing to tell it from" in said[0]
    with pytest.raises(DataError, match="but 0 means 'a' and 255 is ign.*Write 1 instead of 255"):
        plain([[0, 255]], [[255, 0]], classes='ab')


def test_nothing_to_learn(plain, said):
    with pytest.raises(DataError, match=r'no pixel of .*images has a class: all are ignored'):
        plain([[255, 255]], [[255, 255]])
    with pytest.raises(DataError, match='Is ignore_index or reduce_zero_label set wrongly'):
        plain([[0, 255]], [[255, 0]], reduce_zero_label=True)
    plain([[255, 255]], [[255, 255]], where='val_dataloader')  # such as a test split
    assert len(said) == 1 and 'has a class' in said[0]


def test_reduce_zero_label_on_labels_that_count_from_0(plain, said):
    plain([[0, 1, 2], [0, 0, 0]], [[0, 1], [2, 2]], reduce_zero_label=True)
    assert len(said) == 1
    assert 'label 3 never occurs, and reduce_zero_label=True ignores label 0, 50.0 %' in said[0]
    assert "If 0 means 'a', set reduce_zero_label=False" in said[0]
    plain([[1, 2, 3], [0, 0, 0]], [[0, 0, 0]], reduce_zero_label=True)  # right: 3 occurs
    plain([[1, 2, 0], [1, 1, 2]], [[1, 2, 1]], reduce_zero_label=True)  # right: 0 is rare
    plain([[0, 0, 0], [0, 0, 0]], [[0, 1, 1]], reduce_zero_label=True)  # 2 does not occur either
    plain([[0, 0, 0], [0, 0, 0]], [[0, 1, 2]])
    assert len(said) == 1


def test_labels_up_to_the_number_of_classes_without_reduce_zero_label(plain):
    with pytest.raises(
        DataError,
        match=r'label 3 \(2 px\) in .*a.png is no class \(allowed 0..2 and 255\). If 0 means that '
        'a pixel has no class, set reduce_zero_label=True in every data set; if 3 does, write 255',
    ):
        plain([[0, 3, 3]], [[1, 2, 2]])
    with pytest.raises(
        DataError,
        match=r'labels 3 \(1 px\), 4 \(1 px\) in .*Write the number of its class .*, 0..2',
    ):
        plain([[0, 3, 4]], [[1, 2, 2]])
    with pytest.raises(DataError, match=r'label 4 \(1 px\) in .*\(allowed 0..3 and 255\)'):
        plain([[0, 3, 4]], [[1, 2, 2]], reduce_zero_label=True)


def test_reduce_zero_label_is_set_in_one_place(plain):
    load = dict(type='LoadAnnotations', reduce_zero_label=True)
    with pytest.raises(UsageError, match='LoadAnnotations has reduce_zero_label=True, the data se'):
        plain([[0, 1]], [[1, 2]], pipeline=[load])
    two = [[0, 1], [0, 1]], [[1, 2], [1, 2]]
    plain(*two, pipeline=[load], reduce_zero_label=True)
    plain(*two, pipeline=[dict(type='LoadAnnotations')])


def test_what_becomes_of_a_label_is_what_mmsegmentation_makes_of_it(street, tmp_path):
    """Of every label, with classes left out and zero dropped."""
    from mmseg.datasets.transforms import LoadAnnotations

    init_default_scope('mmseg')
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    for reduce in False, True:
        leaf = dict(type='CityscapesDataset', data_root=str(street), data_prefix=prefix)
        leaf |= dict(metainfo=dict(classes=('car', 'road')), reduce_zero_label=reduce)
        dataset = build_dataset(leaf)
        table = LabelMaps(dataset, leaf, 'train_dataloader').table
        png = tmp_path / 'every.png'
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(png)
        results = dict(seg_map_path=str(png), seg_fields=[], label_map=dataset.label_map)
        results['reduce_zero_label'] = reduce
        LoadAnnotations()._load_seg_map(results)
        made = results['gt_seg_map'].reshape(-1)
        known = table >= 0
        assert known.sum() == 20 + reduce
        assert np.array_equal(made[known], table[known])
        assert {*table[known]} == {0, 1, 255}


def test_no_image_takes_the_place_of_another(plain):
    load = dict(type='LoadImageFromFile', ignore_empty=True)
    with pytest.raises(UsageError, match='LoadImageFromFile of train_dataloader has ignore_empty'):
        plain([[0, 1]], [[1, 2]], pipeline=[load])


def test_one_unreadable_image_of_four_is_not_replaced(broken):
    """mmengine draws another for what a pipeline returns None of; reading raises, and names it."""
    from mmseg.datasets import CityscapesDataset

    root, image, *_ = broken
    data = image.read_bytes()
    image.write_bytes(data[:33] + bytes(len(data) - 93) + data[-60:])  # header and end are sound
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    load = [dict(type='LoadImageFromFile')]
    data = CityscapesDataset(data_root=str(root), data_prefix=prefix, pipeline=load)
    read, failed = 0, []
    for number in range(len(data)):
        try:
            read += data[number] is not None
        except AssertionError as error:
            failed.append(str(error))
    assert read == 3 and failed == [f'failed to load image: {image}']


def test_a_set_without_classes(plain):
    with pytest.raises(UsageError, match='has no classes. Set metainfo'):
        plain([[0]], [[1]], metainfo=None)


def test_number_of_classes(broken):
    root, *_ = broken
    leaf = dict(type='CityscapesDataset', data_root=str(root))
    check_classes(leaf, {'model.decode_head.num_classes': 19}, 'train_dataloader')
    with pytest.raises(
        UsageError, match='model.decode_head.num_classes=7 does not fit .* 19 classes'
    ):
        check_classes(leaf, {'model.decode_head.num_classes': 7}, 'train_dataloader')


def test_two_outputs_for_one_class_want_the_other_named(plain):
    leaf = plain([[0, 1]], [[1, 1]], classes='ab') | dict(metainfo=dict(classes=('disc',)))
    with pytest.raises(UsageError, match=r"Name both: metainfo=dict.classes=.'background', 'disc'"):
        check_classes(leaf, {'model.decode_head.num_classes': 2}, 'train_dataloader')
    check_classes(leaf, {'model.decode_head.num_classes': 1}, 'train_dataloader')


def test_panoptic_data_have_heads_of_things_and_of_stuff():
    data = dict(
        type='mmdet.CocoPanopticDataset', data_prefix=dict(img='a/', seg='b/'), ann_file='c'
    )
    data['data_root'] = 'd/'
    head = 'model.roi_head.bbox_head[1].num_classes'
    check_classes(data, {head: 80, 'model.semantic_head.num_classes': 7, 'model.a_head': 53}, 'x')
    with pytest.raises(UsageError, match=r'bbox_head\[1\].num_classes=81 does not fit the data'):
        check_classes(data, {head: 81}, 'x')
