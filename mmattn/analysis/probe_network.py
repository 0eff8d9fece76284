"""One cell of the context probe: a tiny network with one block is trained on a task and tested."""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mmattn.blocks.base import AttentionBlock, registered_blocks
from mmattn.errors import UsageError
from mmattn.text import nearest

from .probe_tasks import COLOURS, IGNORED, SIZE, TASKS

WIDTH = 32  # channels of the network
BATCH = 24  # images of a training step
STEPS = 300  # training steps of a cell
_RATE = 5e-3  # largest learning rate
_MAX_NORM = 1.0  # of the gradients
_HELD_OUT = 512  # images of a test, the same for all blocks and seeds

# group -> row -> arguments that differ from the defaults; the first word of a row is the type.
# Reductions and groups leave as many channels of 32 as the authors' of 128 to 256.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    'no attention': {'none': {}, 'conv3x3': {}},
    'gates of channels': {
        'SE': dict(reduction=4),
        'ECA': {},
        'CMPESE': dict(reduction=4),
        'CAM': {},
    },
    'gates of channels and positions': {
        'SCSE': {},
        'CBAM': dict(reduction=4),
        'BAM': dict(reduction=4),
        'ShuffleAttention': dict(groups=4),
        'SGE': dict(groups=8),
        'EMAttention': dict(groups=8),
        'SimAM': {},
        'TripletAttention': {},
        'CoordinateAttention': dict(reduction=4),
        'AttentionGate': dict(gating_channels=WIDTH),
        'ResidualAttention': dict(depth=2),
    },
    'large kernels': {'LSK': {}, 'LSKA': {}},
    'one context for all': {'ContextBlock': dict(ratio=1 / 4), 'SimplifiedNonLocal': {}},
    'pairs of positions': {
        'NonLocal2d': {},
        'NonLocal2d dot_product': dict(mode='dot_product'),
        'PAM': {},
        'DualAttention': {},
        'APNB': {},
        'AFNB': {},
        'CrissCrossAttention': {},
        'CrissCrossAttention 2': dict(recurrence=2),
        'MHSA': dict(size=SIZE),
        'MHSA none': dict(position='none'),
    },
    'selection and sampling': {
        'SKConv2d': dict(groups=1, dilation=2),
        'SpatialTransformer': {},
    },
}
CONTROLS = tuple(GROUPS['no attention'])
_OTHER = 'other blocks'  # group of blocks that are registered, and not listed above
_IN_PLACE_OF_A_CONVOLUTION = ('SKConv2d', 'MHSA')  # stand within a residual connection


@dataclass(frozen=True)
class Cell:
    """What one network reached.

    Attributes:
        block, task, seed: row, task and number of the seed.
        correct, asked: number of pixels with the right class, and of those asked.
        fingerprint: start of the sha256 of the trained weights.
        finite: whether the losses of the training were.
    """

    block: str
    task: str
    seed: int
    correct: int
    asked: int
    fingerprint: str
    finite: bool = True

    @property
    def key(self) -> tuple[str, str, int]:
        return self.block, self.task, self.seed

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / self.asked


def rows() -> dict[str, str]:
    """Row -> its group, in the order of the table; blocks that users registered come last."""
    listed = {row: group for group, blocks in GROUPS.items() for row in blocks}
    types = {row.partition(' ')[0] for row in listed}
    return listed | {name: _OTHER for name in registered_blocks() if name not in types}


def build_block(row: str) -> nn.Module:
    """The block of a row for maps of `WIDTH` channels.

    Raises:
        UsageError: there is no such row.
        ValueError: the block refuses these channels.
    """
    if row == 'none':
        return nn.Identity()
    if row == 'conv3x3':
        return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    if row not in rows():
        raise UsageError(f'no block {row!r}.{nearest(row, rows())} There are: {", ".join(rows())}.')
    arguments = next((blocks[row] for blocks in GROUPS.values() if row in blocks), {})
    return registered_blocks()[row.partition(' ')[0]].build(WIDTH, **arguments)


class ProbeNetwork(nn.Module):
    """A 3x3 and a 1x1 convolution, the block, two 1x1 convolutions; ReLU between, no norm.

    (N, C, H, W) -> logits (N, 4, H, W). Without a block a pixel sees 3x3 pixels.

    A block that replaces a convolution and the convolution of the control 'conv3x3' stand within a
    residual connection. Blocks of two maps: `CMPESE` scales a 1x1 convolution of the map and adds
    the map; keys and values of `AFNB` are from the map before the second convolution;
    `AttentionGate` is gated by the map at half its size.

    Args:
        channels: C of the images.
        row: row of the table, see `rows`.

    Raises:
        UsageError: there is no such row.
        ValueError: the block refuses its channels, or needs several maps.
    """

    def __init__(self, channels: int, row: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 1)
        self.block = build_block(row)
        self.kind = row.partition(' ')[0]
        if self.kind == 'CMPESE':
            self.residual = nn.Conv2d(WIDTH, WIDTH, 1)
        elif isinstance(self.block, AttentionBlock) and self.kind not in ('AFNB', 'AttentionGate'):
            count = len(self.block.input_shapes(1, SIZE, SIZE))
            if count > 1:
                raise ValueError(f'{row} needs {count} maps')
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, COLOURS, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x).relu()
        return self.head(self.attend(self.second(early).relu(), early))

    def attend(self, x: Tensor, early: Tensor) -> Tensor:
        """The map, and that before the second convolution -> the output of the block."""
        if self.kind in ('conv3x3', *_IN_PLACE_OF_A_CONVOLUTION):
            return x + self.block(x)
        if self.kind == 'CMPESE':
            return self.block(self.residual(x), x)
        if self.kind == 'AFNB':
            return self.block(early, x)
        if self.kind == 'AttentionGate':
            return self.block(x, F.avg_pool2d(x, 2))
        return self.block(x)


def refusal(row: str) -> str | None:
    """Why a block cannot stand in the network, in its own words; None if it can."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = ProbeNetwork(COLOURS, row).eval()
            size = network(torch.zeros(1, COLOURS, SIZE, SIZE)).shape[2:]
    except (ValueError, TypeError) as error:
        return str(error)
    return None if size == (SIZE, SIZE) else f'{row} changes the size of the map'


def measure(row: str, task_name: str, seed: int, steps: int = STEPS) -> Cell:
    """Train a network on fresh images, and test it on held-out ones.

    The images follow from task and seed, the first weights from block, task and seed. One thread of
    torch is used, whatever its number is, so that the result is the same in any order and any
    process. The process's random numbers are left alone.

    Args:
        row: row of the table, see `rows`.
        task_name: name of a task, see `TASKS`.
        seed: number of the seed, from 0.
        steps: number of training steps.

    Raises:
        UsageError: there is no such row.
        ValueError: the block cannot stand in the network.
    """
    task = TASKS[task_name]
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(_seed(row, task_name, seed))
        network = ProbeNetwork(task.channels, row).train()
        generator = Generator().manual_seed(_seed(task_name, seed))
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_factor, steps))
        finite = True
        for _ in range(steps):
            x, target = task.draw(generator, BATCH, SIZE)
            loss = F.cross_entropy(network(x), target, ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _MAX_NORM)
            optimizer.step()
            schedule.step()
            finite = finite and math.isfinite(loss.item())
        x, target = held_out(task_name)
        with torch.no_grad():
            found = network.eval()(x).argmax(1)
    asked = target != IGNORED
    correct = int((found == target)[asked].sum())
    return Cell(row, task_name, seed, correct, int(asked.sum()), _fingerprint(network), finite)


def held_out(task_name: str) -> tuple[Tensor, Tensor]:
    """Images and targets of the test, the same for all blocks and seeds."""
    generator = Generator().manual_seed(_seed(task_name, 'held out'))
    return TASKS[task_name].draw(generator, _HELD_OUT, SIZE)


def _rate_factor(steps: int, step: int) -> float:
    """A rise over the first tenth of the steps, then half a cosine down to 0."""
    rise = min(1, (step + 1) / max(1, steps // 10))
    return rise * (1 + math.cos(math.pi * step / steps)) / 2


def _seed(*parts: str | int) -> int:
    digest = hashlib.sha256(' '.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 1  # torch takes 63 bits


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
