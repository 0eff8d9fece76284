"""The picture of figures per class shows what the metafile says."""

import cv2
import pytest
import yaml
from matplotlib.axes import Axes

from mmattn.errors import UsageError, WriteError
from mmattn.visualization.class_scores import plot_classes


@pytest.fixture
def metafile(tmp_path):
    def row(name, data='a set', **values):
        metrics = {f'IoU.{k}': v for k, v in values.items()} | {'mIoU': 50.0}
        return dict(Name=name, Results=[dict(Dataset=data, Metrics=metrics)] if values else [])

    models = [
        row('first', car=20.0, sky=90.0, pole=3.0),
        row('second', car=30.0, sky=80.0, pole=4.0),
        row('elsewhere', 'another set', car=30.0, sky=80.0, pole=4.0),
        row('other classes', car=30.0, sky=80.0),
        row('untrained'),
    ]
    path = tmp_path / 'metafile.yml'
    path.write_text(yaml.safe_dump(dict(Models=models)))
    return path


def test_each_model_has_its_marks_in_the_order_of_the_first(metafile, tmp_path, monkeypatch):
    drawn, ticks = {}, []
    plot, set_xticks = Axes.plot, Axes.set_xticks

    def seen(self, x, y, *args, **kwargs):
        drawn[kwargs['label']] = y
        return plot(self, x, y, *args, **kwargs)

    def named(self, places, labels=None, **kwargs):
        ticks.extend(labels or [])
        return set_xticks(self, places, labels, **kwargs)

    monkeypatch.setattr(Axes, 'plot', seen)
    monkeypatch.setattr(Axes, 'set_xticks', named)
    plot_classes(['first', 'second'], tmp_path / 'out.png', metafile)
    assert ticks == ['sky', 'car', 'pole']
    assert drawn == {
        'first, mean 50.00': [90.0, 20.0, 3.0],
        'second, mean 50.00': [80.0, 30.0, 4.0],
    }
    assert cv2.imread(str(tmp_path / 'out.png')).std() > 5


@pytest.mark.parametrize(
    'names, message',
    [
        (['first'], '1 models, allowed 2 to 10'),
        (['first', 'third'], 'has no model third'),
        (['first', 'untrained'], 'untrained: .* has no measured figures per class'),
        (['first', 'elsewhere'], 'elsewhere was measured on another set, first on a set'),
        (['first', 'other classes'], 'other classes was measured on'),
    ],
)
def test_refused(metafile, tmp_path, names, message):
    with pytest.raises(UsageError, match=message):
        plot_classes(names, tmp_path / 'out.png', metafile)
    assert not (tmp_path / 'out.png').exists()


def test_no_place_to_write(metafile, tmp_path):
    with pytest.raises(WriteError, match='Choose another --out'):
        plot_classes(['first', 'second'], tmp_path / 'none' / 'out.png', metafile)
