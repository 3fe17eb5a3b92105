"""In what precision an encoder computes: as configured, and afterwards as before."""

from contextlib import suppress

import pytest
import torch

from dml.models.precision import autocast, choose_precision, convolutions_in

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("auto", "float32"), ("tf32", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")],
)
def test_a_cpu_computes_in_float32_unless_bfloat16_is_configured(wanted, chosen):
    assert choose_precision(wanted, CPU).precision == chosen


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_are_rounded_as_chosen(precision, dtype):
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("before", [("high", True), ("highest", False)])
def test_torchs_settings_are_afterwards_what_they_were_also_after_an_error(precision, before):
    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    own = settings()
    try:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        with suppress(ZeroDivisionError), convolutions_in(precision):
            assert settings() == ("highest", precision != "float32")
            raise ZeroDivisionError
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision(own[0])
        torch.backends.cudnn.allow_tf32 = own[1]
