"""Functions of torch that 2.1, the oldest release for the blocks, has not or names otherwise."""

import torch

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # before 2.3
    is_compiling = torch._utils.is_compiling

# before 2.7 an export cannot be told from a compilation: both take what every format can hold
is_exporting = getattr(torch.compiler, 'is_exporting', is_compiling)

if hasattr(torch.amp, 'is_autocast_available'):

    def has_autocast(device: str) -> bool:
        """Whether a type of device has autocast."""
        # torch.compile of 2.10 cannot trace the question: it would split each block into parts
        return device in ('cpu', 'cuda') or torch.amp.is_autocast_available(device)

    def autocast_dtype(device: str) -> torch.dtype | None:
        """The dtype of matrix products on a type of device under autocast; None where it is off."""
        if has_autocast(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return None

else:  # before 2.4

    def has_autocast(device: str) -> bool:
        """Whether a type of device has autocast."""
        return device in ('cpu', 'cuda')

    def autocast_dtype(device: str) -> torch.dtype | None:
        """The dtype of matrix products on a type of device under autocast; None where it is off."""
        if device == 'cpu' and torch.is_autocast_cpu_enabled():
            return torch.get_autocast_cpu_dtype()
        if device == 'cuda' and torch.is_autocast_enabled():
            return torch.get_autocast_gpu_dtype()
        return None
