"""Where labelled images come from: one file per layout, each a list of samples that can be read again."""
