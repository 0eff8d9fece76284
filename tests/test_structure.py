"""Rules of the package's structure that import-linter does not know (see `make lint`)."""

import ast
import inspect

import pytest

import mmattn
from tests.conftest import ROOT

MODULES = sorted((ROOT / 'mmattn').rglob('*.py'))
MAY_BE_MISSING = {
    'cityscapesscripts', 'faster_coco_eval', 'huggingface_hub', 'matplotlib', 'mmcv', 'mmdet',
    'mmengine', 'mmseg', 'onnxruntime', 'optuna', 'pycocotools', 'pytorch_grad_cam', 'ray', 'rich',
    'safetensors', 'tifffile', 'timm',
}  # fmt: skip
KERNELS = {  # Triton compiles where it is imported
    ('ops/criss_cross.py', 'criss_cross_triton'),
    ('ops/non_local.py', 'attention_triton'),
    ('ops/upsampled_loss.py', 'upsampled_loss_triton'),
}
OTHER_RELEASES = 'torch_compat.py'  # what a torch of another release may lack
COMPILER = ('config/runner_keys.py', 'torch._inductor')  # private: other releases may lack it


def imports_in_functions(path):
    """Modules that functions of a file import."""
    for function in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    yield node.module or '.'
                elif isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file(path):
    """Is of one screenful of ideas; imports inside functions only what may be missing.

    Commands import inside functions what they run, so that `--help` loads nothing heavy.
    """
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 450
    name = path.relative_to(ROOT / 'mmattn').as_posix()
    if name.startswith('cli/') or name == OTHER_RELEASES:
        return
    imported = {module for module in imports_in_functions(path) if (name, module) not in KERNELS}
    imported -= {module for module in imported if (name, module) == COMPILER}
    assert {module.split('.')[0] for module in imported} <= MAY_BE_MISSING


def test_train_and_test_take_one_options_object():
    for function in mmattn.train, mmattn.test:
        parameters = inspect.signature(function).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        assert len(named) <= 3 and named[-1] == 'options'


def test_the_folder_of_configs_can_be_browsed():
    assert len(list((ROOT / 'configs').glob('*.py'))) <= 80
