"""Load and check every config that comes with mmdet and mmseg; print those refused, each with the stock error.

Run: python -m tests.all_configs [PART OF A PATH]
"""

import argparse
import contextlib
import io
import sys
import warnings
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, DefaultScope

from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.errors import MmattnError

# Parts of configs that are no configs: nothing can be trained or tested with them alone.
_NO_MODEL = 'has no model with a type'


def configs(package: str) -> list[Path]:
    """All files of the package that are not parents alone."""
    home = Path(import_module(package).__file__).parent / '.mim' / 'configs'
    return [path for path in sorted(home.rglob('*.py')) if '_base_' not in path.parts]


def refusal(path: Path) -> str | None:
    """What we say against a config; None if it is accepted."""
    DefaultScope._instance_dict.clear()
    try:
        check_config(load_config(path))
    except MmattnError as error:
        return str(error).splitlines()[0].replace(str(path), path.name)
    return None


def stock_error(path: Path) -> str | None:
    """What mmengine, mmdet and mmseg say when they read a config and build its parts."""
    DefaultScope._instance_dict.clear()
    try:
        cfg = Config.fromfile(path)
        if 'model' not in cfg:
            return 'it has no model'
        scope = cfg.get('default_scope', 'mmengine')
        DefaultScope.get_instance(scope, scope_name=scope)
        for part in 'models', 'datasets', 'evaluation':
            import_module(f'{scope}.{part}')
        cfg.model.pop('init_cfg', None)
        model = MODELS.build(cfg.model)
        for name in 'train_dataloader', 'val_dataloader', 'test_dataloader':
            if cfg.get(name):
                _build_data(cfg[name].dataset)
        for name in 'val_evaluator', 'test_evaluator':
            found = cfg.get(name) or []
            for metric in found if isinstance(found, list) else [found]:
                with contextlib.suppress(FileNotFoundError):
                    METRICS.build(metric)
        wrapper = cfg.get('optim_wrapper')
        if wrapper and 'constructor' not in wrapper:
            OPTIMIZERS.build(dict(wrapper.optimizer, params=model.parameters()))
    except Exception as error:  # whatever the stock tools raise is what is asked for
        text = str(error).strip().splitlines() or ['']
        return f'{type(error).__name__}: {text[-1]}'[:200]
    return None


def _build_data(cfg: dict) -> None:
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else None)
    if inner is None:
        with contextlib.suppress(FileNotFoundError):  # what is read at once, and is not here
            DATASETS.build(dict(cfg, lazy_init=True))
    for part in inner or ():
        _build_data(part)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('part', nargs='?', default='', help='only paths that contain this')
    args = parser.parse_args(argv)
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('all_configs', log_level='ERROR')
    count = refused = wrongly = parts = 0
    for package in 'mmdet', 'mmseg':
        for path in configs(package):
            if args.part not in str(path):
                continue
            count += 1
            with contextlib.redirect_stdout(io.StringIO()):
                ours = refusal(path)
                stock = ours and stock_error(path)
            if not ours:
                continue
            if _NO_MODEL in ours and stock == 'it has no model':
                parts += 1
                continue
            refused += 1
            wrongly += stock is None
            print(f'{package} {"/".join(path.parts[-2:])}\n  ours:  {ours[:300]}\n  stock: {stock}')
    print(
        f'{count} configs, {parts} are parts without a model, {refused} refused, {wrongly} by us alone'
    )
    return int(wrongly > 0)


if __name__ == '__main__':
    sys.exit(main())
