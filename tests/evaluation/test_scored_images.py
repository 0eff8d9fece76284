"""The images that are tested are those that are scored: wrapped, cut, joined and renumbered sets."""

import json
import re
import shutil
import time

import pytest
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoPanopticMetric

from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import DataError, UsageError
from mmattn.evaluation.coco_metric import CocoMetric
from mmattn.evaluation.scored_images import score_tested_images
from tests.squares import average_precision, by_heart, config, recite, save, squares

CONCAT = """
_two = [dict(ann_file=f, test_mode=True, **_common) for f in {files!r}]
test_dataloader['dataset'] = dict(_delete_=True, type='ConcatDataset', datasets=_two)
val_dataloader['dataset'] = dict(_delete_=True, type='ConcatDataset', datasets=_two)
"""
REPEAT = """
test_dataloader['dataset'] = dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    ann_file='val.json', test_mode=True, **_common))
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('squares')


@pytest.fixture(scope='module')
def sets(root):
    """val and other count from 1, third from 1001 with categories from 5, joined is val and third."""
    made = dict(
        val=squares(root, 'val', 6),
        other=squares(root, 'other', 4),
        third=squares(root, 'third', 5, first=1001, category=5),
        train=squares(root, 'train', 2),
    )
    moved = [dict(a, category_id=a['category_id'] - 4) for a in made['third']['annotations']]
    made['joined'] = dict(
        images=made['val']['images'] + made['third']['images'],
        annotations=made['val']['annotations'] + moved,
        categories=made['val']['categories'],
    )
    return made


@pytest.fixture
def found(sets, monkeypatch):
    known = by_heart(sets['val'], sets['other'], sets['third'], sets['train'])
    recite(monkeypatch, known)
    return known


def scored(root, tmp_path, extra='', **options):
    path = config(tmp_path / 'own.py', root, extra)
    return evaluate(path, None, work_dir=tmp_path / 'work', cfg_options=options)


def ap(*args):
    return round(average_precision(*args), 3)


def test_files_with_a_byte_order_mark(root, sets, found, tmp_path):
    """As editors on Windows write them: trained on, and scored with the same number."""
    marked = tmp_path / 'marked'
    shutil.copytree(root, marked)
    for file in marked.glob('*.json'):
        file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    assert scored(marked, tmp_path)['coco/bbox_mAP'] == ap(sets['val'], found)
    train(config(tmp_path / 'own.py', marked), work_dir=tmp_path / 'run', validate=False)
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()


def test_a_set_alone(root, sets, found, tmp_path):
    """mmdet's own metric is exchanged, and gives pycocotools' number."""
    assert scored(root, tmp_path)['coco/bbox_mAP'] == ap(sets['val'], found) == 0.43


def test_a_test_needs_no_other_data(root, sets, found, tmp_path):
    """Nor does its rehearsal, which is of one test image."""
    gone = {f'{part}_dataloader.dataset.ann_file': 'none.json' for part in ('train', 'val')}
    assert scored(root, tmp_path, **gone)['coco/bbox_mAP'] == ap(sets['val'], found)
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert 'rehearsal: a test of one image passed' in log.read_text()


def test_sets_of_their_own_ids_are_scored_together(root, sets, found, tmp_path):
    """Although their categories have other ids."""
    files = CONCAT.format(files=['val.json', 'third.json'])
    metrics = scored(root, tmp_path, files)
    assert metrics['coco/bbox_mAP'] == ap(sets['joined'], found)
    assert len({ap(sets[k], found) for k in ('val', 'third', 'joined')}) == 3


def test_ids_that_two_files_use_are_refused_and_the_remedy_scores_each(root, sets, found, tmp_path):
    files = CONCAT.format(files=['val.json', 'other.json'])
    with pytest.raises(
        UsageError, match='/other_0.png and .*/val_0.png both have the id 1'
    ) as info:
        scored(root, tmp_path, files)
    remedy = re.search(r'test_evaluator = (dict.*\)\])', str(info.value))[0] + ')'
    metrics = scored(root, tmp_path, f'{files}\n{remedy}\n')
    for name in 'val', 'other':
        assert metrics[f'{name}/coco/bbox_mAP'] == ap(sets[name], found)
    for i, image in enumerate(sets['other']['images']):  # the other remedy
        assert image['id'] == i + 1
    apart = dict(sets['other'], images=[dict(i, id=i['id'] + 50) for i in sets['other']['images']])
    apart['annotations'] = [
        dict(a, image_id=a['image_id'] + 50) for a in sets['other']['annotations']
    ]
    save(root / 'apart.json', apart)
    files = CONCAT.format(files=['val.json', 'apart.json'])
    whole = dict(
        images=sets['val']['images'] + apart['images'],
        annotations=[
            dict(a, id=i)
            for i, a in enumerate(sets['val']['annotations'] + apart['annotations'], 1)
        ],
        categories=apart['categories'],
    )
    assert scored(root, tmp_path, files)['coco/bbox_mAP'] == ap(whole, found)


def test_a_metric_for_each_set_needs_one_each(root, found, tmp_path):
    files = CONCAT.format(files=['val.json', 'other.json'])
    one = "dict(type='CocoMetric', metric='bbox')"
    short = f"""
test_evaluator = dict(_delete_=True, type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'],
    metrics=[{one}])
"""
    with pytest.raises(
        UsageError, match='has 2 data sets, but it has 1 metrics and 2 dataset_pref'
    ):
        scored(root, tmp_path, files + short)


def test_each_set_has_result_files_of_its_own(root, sets, found, tmp_path):
    files = CONCAT.format(files=['val.json', 'other.json'])
    one = "dict(type='CocoMetric', metric='bbox')"
    path = config(
        tmp_path / 'own.py',
        root,
        f"""{files}
test_evaluator = dict(_delete_=True, type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'],
    metrics=[{one}, {one}])
""",
    )
    evaluate(path, None, work_dir=tmp_path / 'work', out=tmp_path / 'out')
    for name, split in ('a', 'val'), ('b', 'other'):
        rows = json.loads((tmp_path / 'out' / f'{name}.bbox.json').read_text())
        assert len(rows) == sum(len(found[i['file_name']]) for i in sets[split]['images'])
    with pytest.raises(UsageError, match='all.pkl: MultiDatasetsEvaluator .* a folder, such as'):
        evaluate(path, None, work_dir=tmp_path / 'work', out=tmp_path / 'all.pkl')


@pytest.mark.parametrize('indices', [4, [1, 4], [5, 2, 0]])
def test_some_images_are_scored_alone(root, sets, found, tmp_path, indices):
    chosen = range(indices) if isinstance(indices, int) else indices
    ids = {sets['val']['images'][i]['id'] for i in chosen}
    metrics = scored(root, tmp_path, **{'test_dataloader.dataset.indices': indices})
    assert metrics['coco/bbox_mAP'] == ap(sets['val'], found, ids) != ap(sets['val'], found)


def test_images_that_a_filter_leaves_out_are_not_missed(root, sets, found, tmp_path):
    bare = sets['val']['images'][2]['id']
    rest = [a for a in sets['val']['annotations'] if a['image_id'] != bare]
    save(root / 'bare.json', dict(sets['val'], annotations=rest))
    options = {
        'test_dataloader.dataset.ann_file': 'bare.json',
        'test_dataloader.dataset.test_mode': False,
        'test_dataloader.dataset.filter_cfg': dict(filter_empty_gt=True),
    }
    kept = {i['id'] for i in sets['val']['images']} - {bare}
    metrics = scored(root, tmp_path, **options)
    assert metrics['coco/bbox_mAP'] == ap(dict(sets['val'], annotations=rest), found, kept)


def test_an_image_that_comes_twice_is_refused_and_the_remedy_is_right(root, sets, found, tmp_path):
    with pytest.raises(UsageError, match='RepeatDataset yields .*/val_0.png 2 times') as info:
        scored(root, tmp_path, REPEAT)
    assert 'Set test_dataloader.dataset to the data set inside of RepeatDataset' in str(info.value)
    inside = "test_dataloader['dataset'] = test_dataloader['dataset']['dataset']\n"
    inside += "test_dataloader['dataset']['_delete_'] = True\n"
    assert scored(root, tmp_path, REPEAT + inside)['coco/bbox_mAP'] == ap(sets['val'], found)
    with pytest.raises(UsageError, match=r'CocoDataset yields .*val_1.png 2 times.* Name it once'):
        scored(root, tmp_path, **{'test_dataloader.dataset.indices': [1, 2, 1]})
    twice = CONCAT.format(files=['val.json', 'val.json'])
    with pytest.raises(UsageError, match=r'ConcatDataset yields .* 2 times.* Leave out one of'):
        scored(root, tmp_path, twice)


def test_a_file_of_other_images_is_refused_and_may_be_left_out(root, sets, found, tmp_path):
    files = CONCAT.format(files=['val.json', 'third.json'])
    named = f"test_evaluator['ann_file'] = '{root}/val.json'\n"
    with pytest.raises(UsageError, match=r'5 of 11 that are tested, e.g. .*third_0.png.* 1001'):
        scored(root, tmp_path, files + named)
    assert scored(root, tmp_path, files)['coco/bbox_mAP'] == ap(sets['joined'], found)
    save(root / 'joined.json', sets['joined'])
    named = f"test_evaluator['ann_file'] = '{root}/joined.json'\n"
    apart = files.replace("'third.json'", "'third5.json'")
    moved = [dict(a, category_id=a['category_id'] - 4) for a in sets['third']['annotations']]
    save(
        root / 'third5.json',
        dict(sets['third'], annotations=moved, categories=sets['val']['categories']),
    )
    assert scored(root, tmp_path, apart + named)['coco/bbox_mAP'] == ap(sets['joined'], found)
    save(root / 'joined.json', dict(sets['joined'], categories=sets['joined']['categories'][::-1]))
    with pytest.raises(
        UsageError, match=r"have \('red', 'green'\), .*joined.json \('green', 'red'\)"
    ):
        scored(root, tmp_path, apart + named)
    swapped = json.loads(json.dumps(sets['joined']))
    a, b = swapped['images'][0], swapped['images'][7]
    a['file_name'], b['file_name'] = b['file_name'], a['file_name']
    save(root / 'joined.json', swapped)
    with pytest.raises(
        UsageError, match=r'2 of 11 that are tested, e.g. .*/val_0.png, which is im'
    ):
        scored(root, tmp_path, apart + named)


def test_several_metrics_all_score_what_is_tested(root, sets, found, tmp_path):
    several = """
test_evaluator = [dict(type='CocoMetric', metric='bbox', prefix=p) for p in ('a', 'b')]
"""
    metrics = scored(root, tmp_path, several, **{'test_dataloader.dataset.indices': 3})
    ids = {i['id'] for i in sets['val']['images'][:3]}
    assert metrics['a/bbox_mAP'] == metrics['b/bbox_mAP'] == ap(sets['val'], found, ids)
    plain = "test_evaluator = dict(_delete_=True, metrics=[dict(type='CocoMetric')])\n"
    metrics = scored(root, tmp_path, plain, **{'test_dataloader.dataset.indices': 3})
    assert metrics['coco/bbox_mAP'] == ap(sets['val'], found, ids)


def test_annotation_ids_from_0_score_as_from_1(root, sets, found, tmp_path):
    zero = json.loads(json.dumps(sets['val']))
    for entry in zero['annotations']:
        entry['id'] -= 1
    save(root / 'zero.json', zero)
    metrics = scored(root, tmp_path, **{'test_dataloader.dataset.ann_file': 'zero.json'})
    assert metrics['coco/bbox_mAP'] == ap(sets['val'], found) != ap(zero, found)
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert (
        'zero.json: annotation ids count from 0. They are scored as if from 1.' in log.read_text()
    )


def test_ids_may_be_texts(root, sets, found, tmp_path):
    texts = json.loads(json.dumps(sets['val']))
    for entry in texts['images'] + texts['annotations'] + texts['categories']:
        entry['id'] = f'n{entry["id"]}'
    for entry in texts['annotations']:
        entry.update(image_id=f'n{entry["image_id"]}', category_id=f'n{entry["category_id"]}')
    save(root / 'texts.json', texts)
    for indices in None, 3:
        options = {'test_dataloader.dataset.indices': indices} if indices else {}
        metrics = scored(
            root, tmp_path, **{'test_dataloader.dataset.ann_file': 'texts.json'}, **options
        )
        ids = {i['id'] for i in sets['val']['images'][:indices]}
        assert metrics['coco/bbox_mAP'] == ap(sets['val'], found, ids)


@pytest.mark.parametrize('kind', ['CocoMetric', 'mmdet.CocoMetric'])
def test_each_class_has_its_own_figure_whatever_its_id(root, sets, found, tmp_path, kind):
    """The categories do not stand in the order of their ids."""
    other = json.loads(json.dumps(sets['val']))
    for entry in other['categories']:
        entry['id'] = 3 - entry['id']
    for entry in other['annotations']:
        entry['category_id'] = 3 - entry['category_id']
    save(root / 'turned.json', other)
    metrics = scored(
        root,
        tmp_path,
        **{
            'test_dataloader.dataset.ann_file': 'turned.json',
            'test_evaluator.classwise': True,
            'test_evaluator.type': kind,
            'test_evaluator.outfile_prefix': str(tmp_path / 'results'),
        },
    )
    for label, name in enumerate(('red', 'green')):
        own = dict(
            sets['val'],
            annotations=[a for a in sets['val']['annotations'] if a['category_id'] == label + 1],
        )
        rows = {file: [r for r in known if r[4] == label] for file, known in found.items()}
        assert metrics[f'coco/{name}_precision'] == pytest.approx(ap(own, rows), abs=1e-3)
    assert metrics['coco/bbox_mAP'] == ap(sets['val'], found)
    results = json.loads((tmp_path / 'results.bbox.json').read_text())
    labels = [row[4] for image in sets['val']['images'] for row in found[image['file_name']]]
    assert [2 - row['category_id'] for row in results] == labels


def test_a_test_set_without_annotations_is_written(root, sets, found, tmp_path):
    """As COCO's test-dev: what is found goes to a server."""
    bare = {k: v for k, v in sets['val'].items() if k != 'annotations'}
    save(root / 'bare.json', bare)
    bare_file = {'test_dataloader.dataset.ann_file': 'bare.json'}
    with pytest.raises(DataError, match="'annotations' is missing.*format_only=True and outf"):
        scored(root, tmp_path, **bare_file)
    remedy = {
        'test_evaluator.format_only': True,
        'test_evaluator.outfile_prefix': str(tmp_path / 'results'),
    }
    for more in {}, {'test_evaluator.type': 'mmdet.CocoMetric'}:
        scored(root, tmp_path, **bare_file, **remedy, **more)
        rows = json.loads((tmp_path / 'results.bbox.json').read_text())
        assert len(rows) == sum(len(found[i['file_name']]) for i in bare['images'])
        (tmp_path / 'results.bbox.json').unlink()


def test_a_training_is_validated_on_each_set_and_its_best_is_found(root, sets, found, tmp_path):
    """The remedy that a refused training names, rehearsed too."""
    files = CONCAT.format(files=['val.json', 'other.json'])
    with pytest.raises(UsageError, match='both have the id 1') as info:
        train(config(tmp_path / 'own.py', root, files), work_dir=tmp_path / 'work')
    remedy = re.search(
        r"val_evaluator = (dict.*\)\]\)); the figure .* is then ('.*')", str(info.value)
    )
    text = f"""{files}
val_evaluator = {remedy[1]}
default_hooks = dict(checkpoint=dict(save_best={remedy[2]}))
"""
    work = train(config(tmp_path / 'own.py', root, text), work_dir=tmp_path / 'work')
    (log,) = work.glob('*/vis_data/scalars.json')
    last = json.loads(log.read_text().splitlines()[-1])
    for name in 'val', 'other':
        assert last[f'{name}/coco/bbox_mAP'] == ap(sets[name], found)
    assert (work / 'best.pth').exists()


def test_a_training_is_refused_before_its_first_step(root, found, tmp_path):
    files = CONCAT.format(files=['val.json', 'other.json'])
    path = config(tmp_path / 'own.py', root, files)
    with pytest.raises(UsageError, match='images of val_dataloader: .* both have the id 1'):
        train(path, work_dir=tmp_path / 'work')
    assert not list((tmp_path / 'work').rglob('*.pth'))


def test_metrics_that_score_all_images_of_their_file(root, sets):
    """Panoptic quality is of each image, but its files are of all; the others do not learn which."""
    index = type('Index', (), dict(imgs={i['id']: i for i in sets['val']['images']}))
    evaluator = type('E', (), {})
    folder = dict(img=str(root / 'images/'))
    cut = CocoDataset(
        ann_file=str(root / 'val.json'), data_prefix=folder, indices=2, pipeline=[], test_mode=True
    )
    for name, prefix, refused in ('Other', None, 1), ('Pan', 'out', 1), ('Pan', None, 0):
        base = (CocoPanopticMetric,) if name == 'Pan' else ()
        metric = object.__new__(type(name, base, {}))
        metric._coco_api, metric.outfile_prefix, evaluator.metrics = index, prefix, [metric]
        if refused:
            with pytest.raises(UsageError, match=f'yields 2 of the 6 images that {name} scores'):
                score_tested_images(cut, evaluator, 'test')
        else:
            score_tested_images(cut, evaluator, 'test')


def test_a_large_set_is_compared_in_a_moment(tmp_path):
    """A sixth of COCO's training set, whole and cut; the whole one is not even read again."""
    count = 20000
    images = [
        dict(id=i, file_name=f'{i:012d}.jpg', width=640, height=480) for i in range(1, count + 1)
    ]
    save(
        tmp_path / 'large.json',
        dict(images=images, annotations=[], categories=[dict(id=1, name='red')]),
    )
    options = dict(
        ann_file=str(tmp_path / 'large.json'), data_prefix=dict(img=''), test_mode=True,
        metainfo=dict(classes=('red',)), pipeline=[],
    )  # fmt: skip
    metric = CocoMetric(options['ann_file'])
    evaluator = type('E', (), dict(metrics=[metric]))
    whole, cut = CocoDataset(**options), CocoDataset(indices=15000, **options)
    start = time.process_time()
    score_tested_images(whole, evaluator, 'val')
    assert metric.img_ids is None
    score_tested_images(cut, evaluator, 'val')
    assert time.process_time() - start < 2 and metric.img_ids == list(range(1, 15001))
