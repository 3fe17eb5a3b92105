"""From a package and a dataset to answers: embed, index, filter, search, evaluate."""
