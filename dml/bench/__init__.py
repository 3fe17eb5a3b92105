"""Every loss on every dataset by one protocol: a grid, its cells, and their table beside published ones."""
