"""Pictures in a window: which ones, for how long, and what is said where there is no display."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from mmattn.engine.network import build_network
from mmattn.engine.test import test as evaluate
from mmattn.errors import UsageError
from mmattn.inference.infer import infer
from mmattn.visualization.window import check_window, show_picture
from tests.conftest import ROOT
from tests.engine.killing import SMALL
from tests.test_tools import tool

CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'


@pytest.fixture
def display(monkeypatch):
    """As if there were a display: what stays in the window, and for how many seconds."""
    shown = []

    def pause(seconds):
        canvas = pyplot.gcf().canvas
        canvas.draw()
        shown.append((np.asarray(canvas.buffer_rgba())[..., :3], seconds))

    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(pyplot, 'get_backend', lambda: 'tkagg')
    monkeypatch.setattr(pyplot, 'pause', pause)
    with pyplot.rc_context():
        pyplot.switch_backend('agg')
        yield shown
    pyplot.close('all')


@pytest.mark.parametrize('name', ['test', 'infer'])
def test_without_a_display_it_is_one_sentence(name, monkeypatch, capsys, tmp_path):
    for variable in 'DISPLAY', 'WAYLAND_DISPLAY':
        monkeypatch.delenv(variable, raising=False)
    images = [str(tmp_path)] if name == 'infer' else []
    assert tool(name)([str(CONFIG), 'none.pth', *images, '--show']) == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith('error: ')]
    assert len(said) == 1 and said[0].startswith('error: --show: there is no display, as neither ')
    assert {'test': '--show-dir', 'infer': '--out-dir'}[name] in said[0]


def test_refused(display, monkeypatch):
    check_window(0, 'Look.')
    with pytest.raises(UsageError, match='--wait-time -1: allowed are 0 seconds and more'):
        check_window(-1, 'Look.')
    with pytest.raises(UsageError, match='--show needs one process: leave --launcher pytorch out'):
        evaluate(CONFIG, None, show=True, launcher='pytorch')
    monkeypatch.setattr(pyplot, 'get_backend', lambda: 'agg')
    with pytest.raises(UsageError, match='no toolkit .* pip install pyqt6. Otherwise: look.'):
        check_window(0, 'Look.')


def test_a_picture_is_shown_pixel_by_pixel_until_its_time_is_over(display, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    show_picture(picture, 'a', 0.5)
    ((seen, seconds),) = display
    assert seconds == 0.5 and (seen == picture[..., ::-1]).all()
    keys = []
    monkeypatch.setattr('matplotlib.figure.Figure.waitforbuttonpress', lambda _: keys.append(1))
    show_picture(picture[:20], 'b', 0)
    assert keys == [1] and len(display) == 1 and len(pyplot.get_fignums()) == 1


def test_test_and_infer_show_each_image(display, tiny, street, tmp_path):
    options = SMALL | tiny
    evaluate(CONFIG, None, work_dir=tmp_path, cfg_options=options, show=True, wait_time=0.1)
    assert [seconds for _, seconds in display] == [0.1, 0.1]  # two images, and no rehearsal
    assert display[0][0].shape[1] > 3 * 128 and not list(tmp_path.rglob('*.png'))
    display.clear()
    folder = street / 'leftImg8bit' / 'test'
    weights = tmp_path / 'random.pth'
    torch.save(dict(state_dict=build_network(CONFIG, options)[0].state_dict()), weights)
    out = tmp_path / 'out'
    infer(CONFIG, weights, folder, out_dir=out, options=options, show=True, device='cpu')
    assert len(display) == len(list((out / 'overlay').rglob('*.png'))) == 2
