"""Installed packages: what to do when one is missing, or is there without its operators.

The blocks and what puts them into networks need torch and numpy alone. All else comes with an extra
of the package, such as `pip install "mmattn[det]"`.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# extra -> top-level modules that it installs
EXTRAS = {
    'det': (
        'mmengine', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'safetensors', 'cityscapesscripts',
        'cv2', 'PIL', 'matplotlib', 'rich', 'scipy', 'tensorboard', 'yaml',
    ),
    'export': ('onnx', 'onnxscript', 'onnxruntime'),
    'hub': ('huggingface_hub',),
    'view': ('pytorch_grad_cam', 'ttach'),
    'data': ('tifffile', 'faster_coco_eval'),
    'tune': ('optuna',),
}  # fmt: skip
# of backends of the visualizer: each is installed by its own name
_BACKENDS = ('wandb', 'mlflow', 'clearml', 'neptune', 'dvclive', 'aim')
_NAMES = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml'}  # on PyPI
# import name: (distribution of the maintained OneDL fork, distribution of the original project)
DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


# Builds the operators with the torch that is installed, which takes about ten minutes.
BUILD_MMCV = (
    'pip install "setuptools<82" wheel ninja psutil && MMCV_WITH_OPS=1 pip install --no-deps '
    '--no-build-isolation --force-reinstall --no-cache-dir {}'
)


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
            return f'{module} is not installed. Run: {command("det", module)}'
    mmcv = Path(find_spec('mmcv').origin).parent
    if not list(mmcv.glob('_ext.*')):
        name = DISTRIBUTIONS['mmcv']['onedl-mmcv' not in versions]
        return (
            'mmcv was installed without its compiled operators, as pip builds it where it sees no '
            f'torch. Run: {BUILD_MMCV.format(f"{name}=={versions[name]}")}'
        )
    return None


def command(extra: str, module: str) -> str:
    """The command that installs a module: by its extra, unless that would replace other packages.

    Next to an original OpenMMLab package the extra `det` would install the forks over it.
    """
    originals = {original for _, original in DISTRIBUTIONS.values()}
    if extra != 'det' or not originals & installed_versions().keys():
        return f'pip install "mmattn[{extra}]"'
    if module == 'mmcv':
        return BUILD_MMCV.format('mmcv==2.1.0')
    if module in DISTRIBUTIONS:
        return f'pip install {DISTRIBUTIONS[module][1]}'
    return f'pip install {_NAMES.get(module, module)}'


def import_problem(error: ImportError) -> str | None:
    """What to do about a failed import, in one sentence; None if it is not of a known package."""
    module = (error.name or '').partition('.')[0]
    for extra, modules in EXTRAS.items():
        if module in modules and find_spec(module) is None:
            return f'{module} is not installed. Run: {command(extra, module)}'
    if module in _BACKENDS and find_spec(module) is None:
        return f'{module} is not installed. Run: pip install {module}'
    return installation_problem() if module in EXTRAS['det'] else None


def is_installed(*modules: str) -> bool:
    """Whether all these top-level modules can be imported; imports none of them."""
    try:
        return all(find_spec(module) is not None for module in modules)
    except ImportError:  # raised by an import hook
        return False


def missing_module_error(what: str, module: str) -> ImportError:
    """The error of something that needs a module which is not installed."""
    error = ImportError(name=module)
    return ImportError(f'{what} needs {module}: {import_problem(error) or error}', name=module)
