"""Encoders of images to unit-length embeddings: backbones, the head, and packages that are published."""
