"""The command line that reproduces a run."""

from pathlib import Path

from mmattn.config.options import command_line, parse_options


def relative_path(path: str | Path) -> str:
    """A path relative to the working folder, or the file name alone; never an absolute path."""
    path = Path(path)
    if path.is_absolute():
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return str(path)


def option_flags(options: dict) -> str:
    """`--cfg-options` with a leading space; '' without options."""
    text = command_line(options, relative_path)
    return f' --cfg-options {text}' if text else ''


def train_command(config, options, seed: int | None, init_from) -> str:
    """The `tools/train.py` command of a training.

    Args:
        config: path of the config.
        options: `TrainOptions`.
        seed: seed of the run.
        init_from: path of the weights that it starts from, or None.
    """
    command = f'python tools/train.py {relative_path(config)}'
    command += f' --data {options.data}' if options.data else ''
    command += f' --attention {options.attention}' if options.attention else ''
    command += f' --init-from {relative_path(init_from)}' if init_from else ''
    command += f' --seed {seed}' if seed is not None else ''
    command += ' --auto-scale-lr' if options.auto_scale_lr else ''
    command += ' --val-loss' if options.val_loss else ''
    return command + network_flags(options) + option_flags(parse_options(options.cfg_options))


def network_flags(options) -> str:
    """Flags of `TrainOptions` or `TestOptions` on how the network runs, with a leading space."""
    flags = f' --amp {options.amp}'.removesuffix(' True') if options.amp else ''
    flags += ' --channels-last' if options.channels_last else ''
    flags += ' --compile' if options.compile else ''
    return flags + (' --fuse-conv-bn' if getattr(options, 'fuse_conv_bn', False) else '')
