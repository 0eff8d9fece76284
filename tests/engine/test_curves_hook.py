"""The hook that plots a training."""

import json
from types import SimpleNamespace

from mmattn.engine.hooks import CurvesHook
from mmattn.engine.hooks import curves as module


def test_curves_are_drawn_again_when_something_was_logged(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, 'plot_curves', lambda work_dir, metric: drawn.append(metric))
    log = tmp_path / '1' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    hook, runner = CurvesHook('mIoU'), SimpleNamespace(rank=0, work_dir=tmp_path)
    log.write_text(json.dumps(dict(iter=1, loss=2.0)) + '\n')
    hook.after_val_epoch(runner)
    hook.after_train(runner)  # the end of the same step
    assert drawn == ['mIoU']
    with log.open('a') as file:
        file.write(json.dumps(dict(step=1, mIoU=3.0)) + '\n')
    hook.after_train(runner)
    assert drawn == ['mIoU'] * 2
    hook.after_train(SimpleNamespace(rank=1, work_dir=tmp_path))
    assert len(drawn) == 2
