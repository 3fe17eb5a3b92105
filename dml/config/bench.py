"""Configuration of a bench, a grid of experiments."""

from typing import Any, Literal, get_args

from pydantic import Field

from dml.config.losses import Mining, loss_kinds, takes_mining
from dml.config.part import Part, parse
from dml.errors import InvalidSetting, did_you_mean


class BenchConfig(Part):
    """A grid of experiments, one per dataset, loss and seed, and the table of its results."""

    datasets: tuple[str, ...] = Field(min_length=1, description="NAME or NAME@VERSION")
    presets: tuple[str, ...] = Field(
        ("smoke",), min_length=1, description="NAME for every dataset, or DATASET=NAME for one"
    )
    losses: tuple[str, ...] = Field(
        (), description="KIND or KIND/MINING, one row each; none: one row per preset, with its loss"
    )
    minings: tuple[Mining, ...] = Field(
        (), description="one row each, for losses with mining given as KIND; none: the loss's default"
    )
    seeds: int = Field(3, ge=1, description="runs per row, seeds 0, 1, ...")
    settings: tuple[str, ...] = Field(
        (), description="path.to.key=value; WHERE:path.to.key=value for one dataset or one loss"
    )
    baselines: tuple[Literal["raw pixels", "softmax"], ...] = ("raw pixels", "softmax")
    compare: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of rows for the paired test: KIND, KIND/MINING or PRESET, also with @SEED"
    )
    compare_metric: str = Field("recall_at_1", description="a metric that every single query has")
    parallel: int | None = Field(
        None, ge=1, description="concurrent cells; None: the number of GPUs of this machine, at least 1"
    )
    reproduce: str | None = Field(
        None, description="a publication whose data and weights must be present: confusezius-cub200, ..."
    )

    def rows(self) -> list[tuple[str, str | None]]:
        """Kind and mining of each row; mining is None if the loss has none, or uses its default.

        Raises:
            InvalidSetting: an unknown loss or mining, or a mining that the loss does not take.
        """
        rows: dict[tuple[str, str | None], None] = {}
        for text in self.losses:
            kind, slash, mining = text.partition("/")
            takes = takes_mining(kind)
            if slash and not takes:
                raise InvalidSetting(
                    f"The {kind} loss takes no mining; got {text!r}. Losses that do: "
                    f"{', '.join(k for k in loss_kinds() if takes_mining(k))}."
                )
            if slash and mining not in get_args(Mining):
                raise InvalidSetting(
                    f"mining must be one of {', '.join(get_args(Mining))}; got {text!r}."
                    f"{did_you_mean(mining, get_args(Mining))}"
                )
            minings = self.minings if takes and not slash else ()
            rows |= dict.fromkeys((kind, m) for m in minings or (mining or None,))
        if self.minings and not any(mining in self.minings for _, mining in rows):
            raise InvalidSetting(
                f"None of the losses {list(self.losses)} takes a mining of --minings; got "
                f"{list(self.minings)}. Leave it out, or add one of "
                f"{', '.join(k for k in loss_kinds() if takes_mining(k))}."
            )
        return list(rows)


def parse_bench(tree: Any) -> BenchConfig:
    """The grid that a JSON tree describes; raises InvalidSetting with every invalid setting."""
    return parse(BenchConfig, tree)
