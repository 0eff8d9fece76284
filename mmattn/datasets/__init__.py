"""Data sets: preparing, generating, checking and loading them."""

from .camvid import CamVidDataset as CamVidDataset
