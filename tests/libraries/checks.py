"""What holds for blocks in a network of any library: one function per promise, for any `Case`.

A test file of a library lists its networks as `Case`s and runs `CHECKS` over all of them:

    @pytest.mark.parametrize('check', CHECKS)
    @pytest.mark.parametrize('name', CASES)
    def test_network(name, check):
        CHECKS[check](CASES[name])

`run_page` executes the code blocks of a page of docs/put_in.
"""

import contextlib
import copy
import functools
import io
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mmattn
from mmattn.plugins import named_plugins
from tests.conftest import ROOT
from tests.documents import code_blocks, messages

IDENTITY = dict(type='CBAM', reduction=4, init='identity')


def _call(model: nn.Module, images: Tensor) -> Any:
    return model(images)


@dataclass(frozen=True, eq=False)
class Case:
    """A network of a library, and where blocks go.

    Attributes:
        build: returns the plain network, with random weights.
        places: one plugin dict per place, without `cfg`.
        hosts: paths of the modules that the blocks become children of.
        channels: `in_channels` of these blocks, in the same order.
        size: H and W of the images, pixels.
        batch: N.
        cfg: type and arguments of the blocks; they must start as the identity.
        call: (model, images) -> what the network returns in evaluation.
        loss: (model, images) -> the loss of a training step; default: mean square of all outputs.
        fails: 'half', 'bfloat16', 'compile', 'export' or 'pickle' -> a pattern for the error that
            the plain network raises there; that promise is then not asked of the blocks.
        backend: backend of `torch.compile`.
        macs: whether `mmattn.report` knows the cost.
    """

    build: Callable[[], nn.Module]
    places: tuple[dict, ...]
    hosts: tuple[str, ...]
    channels: tuple[int, ...]
    size: tuple[int, int] = (64, 64)
    batch: int = 2
    cfg: dict = field(default_factory=lambda: dict(IDENTITY))
    call: Callable[[nn.Module, Tensor], Any] = _call
    loss: Callable[[nn.Module, Tensor], Tensor] | None = None
    fails: Mapping[str, str] = field(default_factory=dict)
    backend: str = 'aot_eager'
    macs: bool = True

    def images(self) -> Tensor:
        """Images (N, 3, H, W), the same in every call."""
        generator = torch.Generator().manual_seed(1)
        return torch.rand(self.batch, 3, *self.size, generator=generator)

    @functools.cached_property
    def _plain(self) -> nn.Module:
        torch.manual_seed(3)
        model = randomise_constants(self.build()).eval()
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        self.outputs(model)  # whose statistics keep the size of values through any depth
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        return model.eval()

    def plain(self) -> nn.Module:
        """A copy of the plain network in evaluation mode, whose weights hide no block."""
        return copy.deepcopy(self._plain)

    def with_blocks(self, **cfg: Any) -> nn.Module:
        """The same with blocks; `cfg` overrides their arguments."""
        model = self.plain()
        mmattn.insert(model, [dict(cfg=self.cfg | cfg, **place) for place in self.places])
        return model

    def outputs(self, model: nn.Module, images: Tensor | None = None) -> list[Tensor]:
        """All tensors that the network returns, some of which have values."""
        with torch.no_grad():
            found = tensors(self.call(model, self.images() if images is None else images))
        assert any(value.numel() for value in found)
        return found


def tensors(output: Any) -> list[Tensor]:
    """The tensors in dicts, lists and tuples of any depth."""
    if isinstance(output, Mapping):  # output classes that torch does not know, too
        output = list(output.values())
    leaves = tree_leaves(output)
    if any(isinstance(leaf, Mapping) for leaf in leaves):
        return [value for leaf in leaves for value in tensors(leaf)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def randomise_constants(model: nn.Module) -> nn.Module:
    """Draw what libraries initialise as a constant: norms, layer scales, biases, last layers.

    A norm weight or a layer scale of 0 or 1e-6 hides any fault of the branch that it scales.
    """
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or value.numel() == 0:
                continue
            if name.endswith('running_var'):
                value.uniform_(0.5, 1.5)
            elif name.endswith(('running_mean', 'bias')) and bool(
                (value == value.flatten()[0]).all()
            ):
                value.normal_(std=0.1)
            elif value.numel() > 1 and bool((value == value.flatten()[0]).all()):
                value.uniform_(0.5, 1)
    return model


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    """Assert that two lists of tensors are equal to a tolerance, relative to the largest value."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape and b.isfinite().all()
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def differs(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether any tensor has another shape or, by more than 1e-5 of the largest value, values."""
    return any(
        a.shape != b.shape or (a.numel() and (a - b).abs().max() > 1e-5 * b.abs().max())
        for a, b in zip(found, expected)
    )


# ---- the promises ----
def check_places(case: Case) -> None:
    """Blocks are where they should be, with the channels of the map there."""
    model = case.with_blocks()
    blocks = dict(named_plugins(model))
    assert [path.rpartition('.')[0] for path in blocks] == list(case.hosts)
    assert [block.in_channels for block in blocks.values()] == list(case.channels)


def check_start(case: Case) -> None:
    """Step 0 is the plain network to 1e-6, and would not be if a block did anything."""
    expected, model = case.outputs(case.plain()), case.with_blocks()
    close(case.outputs(model), expected)
    for path, block in named_plugins(model):  # no norm after the block undoes what is not linear
        hook = block.register_forward_hook(lambda module, inputs, y: y + y.abs().sqrt())
        assert differs(case.outputs(model), expected), f'{path} acts on no output'
        hook.remove()


def check_weights(case: Case) -> None:
    """Weights of the plain network load; the insertion changes none of them."""
    plain, model = case.plain(), case.with_blocks()
    weights, after = plain.state_dict(), model.state_dict()
    assert list(weights) == [key for key in after if key in weights]
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    starts = tuple(f'{path}.' for path, _ in named_plugins(model))
    fresh = case.build().eval()
    mmattn.insert(fresh, [dict(cfg=case.cfg, **place) for place in case.places])
    fresh.load_state_dict(dict(weights), strict=False)  # which may return nothing
    loaded = fresh.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    missing = loaded.keys() - weights.keys()
    assert missing and all(key.startswith(starts) for key in missing)
    close(case.outputs(fresh), case.outputs(plain))


def check_step(case: Case) -> None:
    """One training step changes every block."""
    model = case.with_blocks().train()
    before = {path: copy.deepcopy(block.state_dict()) for path, block in named_plugins(model)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if case.loss is None:
        loss = sum(y.square().mean() for y in tensors(case.call(model, case.images())))
    else:
        loss = case.loss(model, case.images())
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for path, block in named_plugins(model):
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients), path
        values = dict(block.named_parameters())
        assert any(not torch.equal(values[key], before[path][key]) for key in values), path


def check_copies(case: Case) -> None:
    """A deep copy, a state dict in a file, and a whole network in a file are the same network."""
    model = trained(case)
    expected = case.outputs(model)
    assert differs(case.outputs(case.plain()), expected)
    close(case.outputs(copy.deepcopy(model)), expected)
    other = case.with_blocks()
    other.load_state_dict(saved(model.state_dict(), weights_only=True))
    close(case.outputs(other), expected)
    if _plain_fails(case, 'pickle', lambda plain: pickle.dumps(plain)):
        return
    close(case.outputs(saved(model, weights_only=False)), expected)


def check_half(case: Case) -> None:
    """In half precision the start is the plain network, too."""
    for name, dtype in dict(half=torch.float16, bfloat16=torch.bfloat16).items():
        run = functools.partial(_run_in, case, dtype)
        if _plain_fails(case, name, run):
            continue
        close(run(case.with_blocks()), run(case.plain()), 1e-2)
        assert all(y.isfinite().all() for y in run(trained(case)))


def check_compile(case: Case) -> None:
    """`torch.compile` gives the same results, in fp64: random networks multiply rounding."""

    def compiled(model: nn.Module, images: Tensor | None = None) -> list[Tensor]:
        torch._dynamo.reset()
        return case.outputs(torch.compile(model, backend=case.backend), images)

    if not _plain_fails(case, 'compile', compiled):
        model, images = trained(case).double(), case.images().double()
        close(compiled(model, images), case.outputs(model, images), 1e-9)


def check_export(case: Case) -> None:
    """`torch.export` gives a program with the same results, in fp64 as above."""
    if not _plain_fails(case, 'export', lambda p: torch.export.export(p, (case.images(),))):
        model, images = trained(case).double(), case.images().double()
        expected = case.outputs(model, images)  # an export may leave tensors in the network
        program = torch.export.export(model, (images,))
        close(tensors(program.module()(images)), expected, 1e-9)


def check_record(case: Case) -> None:
    """The attention of every block is recorded, in (N, C, ...)."""
    model = trained(case)
    with mmattn.record(model) as maps:
        case.outputs(model)
    assert set(maps) == {path for path, _ in named_plugins(model)}
    for path, channels in zip(maps, case.channels):
        gates = maps[path]['channel']  # one for each time that the network runs the block
        assert all(gate.shape == (case.batch, channels) for gate in gates), path


def check_report(case: Case) -> None:
    """The report has place, channels, map and cost of every block, and changes nothing."""
    model = case.with_blocks()
    attributes = [set(vars(module)) for module in model.modules()]
    found = mmattn.report(model, case.size)
    assert [row.path.rpartition('.')[0] for row in found.rows] == list(case.hosts)
    assert [row.channels for row in found.rows] == list(case.channels)
    assert all(row.identity for row in found.rows), str(found)
    if case.macs:
        assert not found.warnings and found.macs > sum(row.macs for row in found.rows) > 0
        assert [row.maps[0][1] for row in found.rows] == list(case.channels), str(found)
    else:
        assert 'maps and MACs are unknown' in found.warnings[0]
    assert [set(vars(module)) for module in model.modules()] == attributes
    case.outputs(model)  # values, not fake tensors that the dry run left


CHECKS = {
    check.__name__.removeprefix('check_'): check
    for check in (
        *(check_places, check_start, check_weights, check_step, check_copies, check_half),
        *(check_compile, check_export, check_record, check_report),
    )
}


def trained(case: Case) -> nn.Module:
    """With blocks whose weights are drawn at random, so that they do not act as the identity."""
    model = case.with_blocks()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, block in named_plugins(model):
            for value in block.parameters():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def saved(value: Any, weights_only: bool) -> Any:
    """A value as it comes back from a file."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def _run_in(case: Case, dtype: torch.dtype, model: nn.Module) -> list[Tensor]:
    return case.outputs(model.to(dtype), case.images().to(dtype))


def _plain_fails(case: Case, what: str, use: Callable[[nn.Module], Any]) -> bool:
    """Whether the plain network cannot do it, which must then fail as the case says."""
    if what not in case.fails:
        return False
    with pytest.raises(Exception, match=case.fails[what]):
        use(case.plain())
    return True


def run_page(name: str) -> dict[str, Any]:
    """Run the Python code blocks of docs/put_in/NAME.md in one namespace, in order; returns it.

    A block that begins with the comment `# NAME.py` is a config, and is written to that file
    instead. Every message of the page, a block of `text`, must be among what the code prints, but for
    `[...]`, which stands for anything.
    """
    path = ROOT / 'docs' / 'put_in' / f'{name}.md'
    text = path.read_text(encoding='utf-8')
    blocks = code_blocks(text, 'python')
    assert blocks, f'{path} has no code'
    namespace: dict[str, Any] = {'__name__': name}
    printed = io.StringIO()
    with contextlib.redirect_stdout(_Tee(printed, sys.stdout)):
        for number, block in enumerate(blocks):
            if file := re.match(r'# (\w+\.py)\n', block):
                Path(file[1]).write_text(block, encoding='utf-8')
            else:
                exec(compile(block, f'{path.name}, block {number}', 'exec'), namespace)
    found = ' '.join(printed.getvalue().split())
    for message in messages(text):
        parts = [re.escape(part.strip()) for part in message.split('[...]')]
        assert re.search('.*'.join(parts), found), (
            f'{path.name} has a message that was not printed: {message}'
        )
    return namespace


class _Tee(io.TextIOBase):
    """Writes to several streams."""

    def __init__(self, *streams: Any) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()
