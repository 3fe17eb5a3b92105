"""Search with an open index, and pictures of results, for command line, flows and servers."""
