"""Scores of what infer.py wrote: its ids are its own, so that images and categories go by name."""

import json
import random

import pytest
import torch

from mmattn.engine.network import build_network
from mmattn.errors import DataError, UsageError, WriteError
from mmattn.evaluation.coco import evaluate_coco, report_coco
from mmattn.inference.infer import infer
from tests.squares import CLASSES, average_precision, by_heart, config, recite, save, squares


@pytest.fixture
def case(tmp_path):
    """A set in two folders, and results as infer.py writes them: own ids, from 1, in order."""
    truth = squares(tmp_path, 'val', 6, names=lambda i: f'cam{i % 2}/{i // 2:04d}.png')
    known = by_heart(truth)
    save(tmp_path / 'val.json', truth)
    sources = sorted(known)
    about = dict(
        images=[
            dict(id=i, file_name=f'/data/photos/{name}', width=64, height=48)
            for i, name in enumerate(sources, 1)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        annotations=[],
    )
    results = [
        dict(image_id=i, category_id=label + 1, bbox=[x, y, w, h], score=score)
        for i, name in enumerate(sources, 1)
        for x, y, w, h, label, score in known[name]
    ]
    out = tmp_path / 'out'
    out.mkdir()
    save(out / 'images.json', about)
    save(out / 'results.json', results)
    return tmp_path, truth, known, about, results


def score(root, annotations='val.json', results='out/results.json'):
    return evaluate_coco(root / annotations, root / results).numbers['AP']


def test_ids_need_not_agree(case, capsys):
    """The truth counts its images in another order and its categories from 0, or from 7."""
    root, truth, known, *_ = case
    expected = average_precision(truth, known)
    assert score(root) == pytest.approx(expected, abs=1e-9)
    ids = [image['id'] for image in truth['images']]
    for seed, category in (0, 0), (1, 7):
        new = dict(zip(ids, random.Random(seed).sample(range(90), len(ids))))
        other = dict(
            images=[dict(image, id=new[image['id']]) for image in truth['images']],
            categories=[dict(c, id=c['id'] - 1 + category) for c in truth['categories']],
            annotations=[
                dict(a, image_id=new[a['image_id']], category_id=a['category_id'] - 1 + category)
                for a in truth['annotations']
            ],
        )
        save(root / 'other.json', other)
        assert score(root, 'other.json') == pytest.approx(expected, abs=1e-9)
    assert 'images and categories are paired by name, as' in capsys.readouterr().err


def test_what_infer_writes_is_scored(case, monkeypatch):
    root, truth, known, *_ = case
    path = config(root / 'own.py', root)
    model, _ = build_network(path)
    torch.save(dict(state_dict=model.state_dict()), root / 'own.pth')
    recite(monkeypatch, known)
    infer(path, root / 'own.pth', root / 'images', out_dir=root / 'inferred', device='cpu')
    new = {image['id']: 50 - image['id'] for image in truth['images']}
    other = dict(truth, images=[dict(i, id=new[i['id']]) for i in truth['images']])
    other['annotations'] = [dict(a, image_id=new[a['image_id']]) for a in truth['annotations']]
    for name, content in ('val', truth), ('other', other):
        save(root / f'{name}.json', content)
        found = score(root, f'{name}.json', 'inferred/results.json')
        assert found == pytest.approx(average_precision(truth, known), abs=1e-6)


def test_categories_in_another_order(case):
    root, truth, known, *_ = case
    save(root / 'order.json', dict(truth, categories=truth['categories'][::-1]))
    assert score(root, 'order.json') == pytest.approx(average_precision(truth, known), abs=1e-9)


def test_results_of_other_tools_go_by_id(case, capsys):
    """Without the file of infer.py; or with one that is of something else."""
    root, truth, known, about, results = case
    ids = {f'/data/photos/{i["file_name"]}': i['id'] for i in truth['images']}
    own = {image['id']: ids[image['file_name']] for image in about['images']}
    mapped = [dict(row, image_id=own[row['image_id']]) for row in results]
    save(root / 'theirs.json', mapped)
    expected = average_precision(truth, known)
    assert score(root, results='theirs.json') == pytest.approx(expected, abs=1e-9)
    for strange in [], dict(images=[]), dict(about, annotations=[1]), dict(about, images=[3]):
        save(root / 'images.json', strange)
        assert score(root, results='theirs.json') == pytest.approx(expected, abs=1e-9)
    assert 'paired by name' not in capsys.readouterr().err


def test_images_on_one_side_alone_are_named(case, capsys):
    root, truth, known, *_ = case
    kept = [i for i in truth['images'] if i['file_name'] != 'cam0/0001.png']
    left = {i['id'] for i in kept}
    rest = [a for a in truth['annotations'] if a['image_id'] in left]
    part = dict(truth, images=kept, annotations=rest)
    save(root / 'part.json', part)
    assert score(root, 'part.json') == pytest.approx(average_precision(part, known), abs=1e-9)
    assert 'warning: 1 images of' in capsys.readouterr().err
    more = dict(
        truth, images=[*truth['images'], dict(truth['images'][0], id=99, file_name='z.png')]
    )
    save(root / 'more.json', more)
    assert score(root, 'more.json') == pytest.approx(average_precision(truth, known), abs=1e-9)
    assert 'their objects count as missed' in capsys.readouterr().err


def test_what_cannot_be_paired_is_refused(case):
    root, _, _, about, _ = case

    def refused(pattern, **changes):
        save(root / 'out' / 'images.json', dict(about, **changes))
        with pytest.raises(DataError, match=pattern):
            score(root)

    flat = [dict(i, file_name=f'/elsewhere/{i["id"]}.png') for i in about['images']]
    refused(
        r'none is in .*val.json, e.g. /elsewhere/1.png, where names are like cam0/0000', images=flat
    )
    both = [dict(i, file_name=i['file_name'].replace('cam1', 'x/cam0')) for i in about['images']]
    refused(r'cam0/0000.png and .*x/cam0/0000.png in .* could both be image 1', images=both)
    short = [dict(i, file_name=i['file_name'][-8:]) for i in about['images'][:3]]
    save(root / 'out' / 'results.json', [])
    refused(r'0000.png in .* could be images 1 and 2', images=short)
    other = [dict(id=1, name='red'), dict(id=2, name='blue')]
    refused("category 'blue' of .* is not in .*val.json, which has red, green", categories=other)
    wide = [dict(i, width=640) for i in about['images']]
    refused('is 640x48 in .*, but cam0/0000.png in .*val.json is 64x48', images=wide)


def test_corners_instead_of_sizes_are_noticed(case, capsys):
    root, *_, results = case
    score(root)
    assert 'leave their image' not in capsys.readouterr().err
    corners = []
    for row in results:
        x, y, w, h = row['bbox']
        corners.append(dict(row, bbox=[x, y, x + w, y + h]))
    save(root / 'out' / 'results.json', corners)
    score(root)
    assert 'leave their image; are they x1, y1, x2, y2' in capsys.readouterr().err
    assert json.loads((root / 'out' / 'results.json').read_text()) == corners


def test_scores_are_not_written_over_what_is_scored(case):
    root, *_ = case
    files = ['val.json', 'out/results.json', 'out/images.json']
    before = {name: (root / name).read_bytes() for name in files}
    for name in files:
        with pytest.raises(UsageError, match=f'--json .*{name} is .*{name}, which is read'):
            report_coco(root / 'val.json', root / 'out/results.json', json_path=root / name)
    assert {name: (root / name).read_bytes() for name in files} == before
    with pytest.raises(WriteError, match='cannot write .*val.json/new.json'):
        report_coco(
            root / 'none.json', root / 'none.json', json_path=root / 'val.json' / 'new.json'
        )
    report_coco(
        root / 'val.json', root / 'out/results.json', json_path=root / 'new' / 'scores.json'
    )
    assert json.loads((root / 'new' / 'scores.json').read_text())['numbers']['AP'] > 0
