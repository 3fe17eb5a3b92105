"""From a dataset and an experiment to a package, exactly the same on any number of workers."""
