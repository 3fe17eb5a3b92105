"""Seeded embeddings and labels on which metrics must be their plain loops: ties, duplicates, single items."""

import torch


def unit(rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def on_a_grid(rows, dim, seed):
    """Unit vectors with four entries of one half: similarities are exact, and most of them tie."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.zeros(rows, dim, dtype=torch.float64)
    for vector in vectors:
        places = torch.randperm(dim, generator=generator)[:4]
        vector[places] = torch.randint(0, 2, (4,), generator=generator).double() - 0.5
    return vectors


def balanced(seed):
    return unit(60, 8, seed), torch.arange(60) // 4


def uneven(seed):
    generator = torch.Generator().manual_seed(seed)
    return unit(80, 8, seed), (torch.rand(80, generator=generator) ** 3 * 12).long() * 7 - 3


def ties(seed):
    return on_a_grid(70, 6, seed), torch.arange(70) % 9


def duplicates(seed):
    return on_a_grid(12, 8, seed).repeat(5, 1), torch.arange(60) % 7


def all_the_same(seed):
    return on_a_grid(1, 8, seed).repeat(30, 1), torch.arange(30) % 4


def single_items(seed):
    return unit(40, 8, seed), torch.cat([torch.arange(25), torch.arange(15) % 3 + 100])


def one_class(seed):
    return unit(20, 8, seed), torch.zeros(20, dtype=torch.long)


def two_rows(seed):
    return unit(2, 8, seed), torch.zeros(2, dtype=torch.long)


def people(num_classes, per_class, *, seed, dim=16, noise=0.7):
    """Classes of which some are harder than others; unit rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    spread = noise * torch.rand(num_classes, 1, generator=generator, dtype=torch.float64).add(0.5)
    centers = unit(num_classes, dim, seed)
    around = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * spread[labels]
    return torch.nn.functional.normalize(centers[labels] + around / dim**0.5), labels


CASES = [balanced, uneven, ties, duplicates, all_the_same, single_items, one_class, two_rows]
