"""From an image to a point on the unit sphere: backbones, the encoder around one, and the package we ship."""
