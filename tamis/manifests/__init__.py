"""Subset manifests: which samples to train on, why, and with what weight; immutable and verified."""

from tamis.manifests.reader import Manifest, open_manifest

__all__ = ["Manifest", "open_manifest"]
