"""Encoders, spherical k-means and diagnostics of embeddings."""
