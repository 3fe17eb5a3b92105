"""Shared code of the losses: batch checks, blocks of pairs, miners, proxies, and sharding over workers."""
