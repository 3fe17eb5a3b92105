"""Report pages, charts and pictures of models and search results."""
