"""N gloo processes for the tests, as the conformance suite starts them."""

from dml.training.spawn import run_ranks

__all__ = ["run_ranks"]
