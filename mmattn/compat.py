"""Which packages are installed, and what to do when one is missing."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# import name: (distribution of the maintained line, distribution of the original line)
LINES = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def installed() -> dict[str, str]:
    """Distribution name -> version of every OpenMMLab package found, of either line."""
    found = {}
    for names in LINES.values():
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


def problem() -> str | None:
    """What is wrong with the installation and what to do, in one sentence; None if nothing is."""
    found = installed()
    for module, (onedl, original) in LINES.items():
        if onedl in found and original in found:
            return (
                f'{onedl} and {original} are both installed and overwrite each other. '
                f'Run: pip uninstall -y {onedl} {original}, then install one line again.'
            )
        if onedl not in found and original not in found and find_spec(module) is None:
            return f'{module} is not installed. Run make setup, or: pip install "mmattn[onedl]"'
    mmcv = Path(find_spec('mmcv').origin).parent
    if not list(mmcv.glob('_ext.*')):
        return (
            'mmcv was installed without its compiled operators. Run: pip uninstall -y onedl-mmcv '
            'mmcv; pip cache remove onedl_mmcv; pip install --no-build-isolation onedl-mmcv==2.3.6'
        )
    return None


def is_installed(*modules: str) -> bool:
    """Whether all of some top-level modules can be found; imports none of them."""
    try:
        return all(find_spec(module) is not None for module in modules)
    except ImportError:  # a finder that refuses the name
        return False
