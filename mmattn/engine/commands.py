"""The command line that reproduces a run."""

from pathlib import Path

from mmattn.config.options import command_line


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


def train_command(
    config, options, seed, amp, auto_scale_lr, attention, init_from, val_loss=False
) -> str:
    """The `tools/train.py` command of a training."""
    command = f'python tools/train.py {relative_path(config)}'
    command += f' --attention {attention}' if attention else ''
    command += f' --init-from {relative_path(init_from)}' if init_from else ''
    command += f' --seed {seed}' if seed is not None else ''
    command += ' --amp' if amp else ''
    command += ' --auto-scale-lr' if auto_scale_lr else ''
    command += ' --val-loss' if val_loss else ''
    return command + option_flags(options)
