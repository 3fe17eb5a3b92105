"""What the losses share: checks, blocks of pairs, miners, proxies, and their parts on several workers."""
