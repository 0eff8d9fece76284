"""Packaging: metadata, extras, and the wheel's copy of configs and tools."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def pins(name: str) -> list[str]:
    """The requirements of one file, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


setup(
    name='mmattn',
    version='0.1.0',
    description='Attention for detection and segmentation on the MMCV ecosystem',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmattn', 'mmattn.*']),
)
