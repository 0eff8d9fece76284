"""Installed OpenMMLab packages, and what to do when one is missing."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# import name: (distribution of the maintained OneDL fork, distribution of the original project)
DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution of an OpenMMLab package, by name."""
    versions = {}
    for names in DISTRIBUTIONS.values():
        for name in names:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
    return versions


def installation_problem() -> str | None:
    """A problem of the installation with its remedy, in one sentence; None if there is none."""
    versions = installed_versions()
    for module, (onedl, original) in DISTRIBUTIONS.items():
        if onedl in versions and original in versions:
            return (
                f'{onedl} and {original} are both installed and overwrite each other. '
                f'Run: pip uninstall -y {onedl} {original}, then install one of them again.'
            )
        if onedl not in versions and original not in versions and find_spec(module) is None:
            return f'{module} is not installed. Run make setup, or: pip install "mmattn[onedl]"'
    mmcv = Path(find_spec('mmcv').origin).parent
    if not list(mmcv.glob('_ext.*')):
        return (
            'mmcv was installed without its compiled operators. Run: pip uninstall -y onedl-mmcv '
            'mmcv; pip cache remove onedl_mmcv; pip install --no-build-isolation onedl-mmcv==2.3.6'
        )
    return None


def is_installed(*modules: str) -> bool:
    """Whether all these top-level modules can be imported; imports none of them."""
    try:
        return all(find_spec(module) is not None for module in modules)
    except ImportError:  # raised by an import hook
        return False
