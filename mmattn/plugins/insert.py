"""Insert blocks at named places of any network."""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from .inserter import PluginInserter
from .observed_maps import ObservedMaps


def insert(model: nn.Module, plugins: Sequence[dict]) -> list[str]:
    """Put blocks into a network, in place. State-dict keys of the network stay as they are.

    Each plugin is a dict of

    - `cfg`: type and arguments of the block. `in_channels` follows from the place; write it where
      it cannot. `postfix` distinguishes two blocks of one type at one place.
    - one of the places

      - `position`: 'after_stage', 'after_add' (after each block of the stages), and in the residual
        blocks of a ResNet 'after_conv1', 'after_conv2', ... (after norm and activation; after the
        last convolution, before the addition) and 'before_add' (after the last convolution,
        whichever that is). `stages`, a bool for each, and `blocks`, indices within a stage such as
        (-1,), choose among them; default: all. Stages are numbered siblings that are sequences of
        blocks: `layer1`, ... of a ResNet, `stages.0`, ... of a ConvNeXt, `blocks.0`, ... of an
        EfficientNet, `layers.0`, ... of a Swin of timm, and of torchvision those of `features.0`,
        ... that are no stem or downsampling.
      - `at`: a pattern for paths of modules, after which the block runs: 'neck.fpn_convs.*'. A
        star matches within one step of a path.
      - `replace`: a pattern for paths of convolutions, which the block replaces. It gets their
        channels, kernel, stride, padding and dilation (with init='identity' also groups and
        bias), and their weights where it can start from them.

    - `layout`: axes of the map at the place, 'NCHW' or 'NHWC', as after the stages of a Swin. The
      block gets (N, C, H, W), and the network gets back its own layout. It follows from the place,
      as do the channels; write it where the network cannot run with fake tensors.

    - `memory`: 'recompute' for a block that keeps nothing for the backward pass, which runs it
      again, with the same results; where it follows a batch or group norm, not even the map that it
      reads. 'keep' for one that keeps what it needs. Default: 'recompute' for gates, 'keep' for
      what takes longer, such as pairwise attention, and for modules of others. torch.compile
      decides itself.

    - `learn=True`: the block is trainable inside frozen stages, and its norms update under
      `norm_eval=True`. Only for networks of mmattn, whose `train()` sees to it.

    Plugins at one place run in the order in which they are written; replacements come first.

    A block becomes a child of the module that it follows, such as `se`: its `_abbr_` with the
    `postfix`. Where that module has another attribute of this name which is no module, such as
    timm's `self.se = None`, the name is the first free one of `se_2`, `se_3`, ...

    Args:
        model: any network. It runs once with fake tensors where a module does not tell what it
            returns; it is not changed by that.
        plugins: see above; not changed.

    Returns:
        paths of the blocks, which their state-dict keys start with.

    Raises:
        ValueError: a plugin that cannot be understood, built or placed. The model is unchanged.
        NotOneMap: when the network runs, a plugin after a module that does not return one map.
    """
    maps = ObservedMaps(model)
    inserters = [PluginInserter(model, plugin, n, maps) for n, plugin in enumerate(plugins)]
    inserters.sort(key=lambda inserter: inserter.place != 'replace')
    with ExitStack() as undo:
        for inserter in inserters:
            inserter.undo = undo.callback
        paths = [path for inserter in inserters for path in inserter.insert()]
        undo.pop_all()
    return paths
