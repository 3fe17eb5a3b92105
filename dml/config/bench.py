"""A grid of experiments."""

from typing import Any, Literal, get_args

from pydantic import Field

from dml.config.losses import Mining, loss_kinds, takes_mining
from dml.config.part import Part, parse
from dml.errors import InvalidSetting, did_you_mean


class BenchConfig(Part):
    """A grid of experiments, each dataset with each loss and seed, and the table it ends with."""

    datasets: tuple[str, ...] = Field(min_length=1, description="NAME or NAME@VERSION")
    presets: tuple[str, ...] = Field(
        ("smoke",), min_length=1, description="NAME for every dataset, or DATASET=NAME for one"
    )
    losses: tuple[str, ...] = Field(
        (), description="KIND or KIND/MINING, a row each; none: each preset is a row, as it is"
    )
    minings: tuple[Mining, ...] = Field(
        (), description="for losses that take one and name none, a row each; none: the loss's own"
    )
    seeds: int = Field(3, ge=1, description="runs of each row, seeds 0, 1, ...")
    settings: tuple[str, ...] = Field(
        (), description="path.to.key=value; WHERE:path.to.key=value for one dataset or one loss"
    )
    baselines: tuple[Literal["raw pixels", "softmax"], ...] = ("raw pixels", "softmax")
    compare: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of rows for the paired test: KIND, KIND/MINING or PRESET, also with @SEED"
    )
    compare_metric: str = Field("recall_at_1", description="one that every single query has")
    parallel: int | None = Field(
        None, ge=1, description="cells at a time; None: as many as this machine has GPUs, at least 1"
    )
    reproduce: str | None = Field(
        None, description="a publication whose data and weights must be there: confusezius-cub200, ..."
    )

    def rows(self) -> list[tuple[str, str | None]]:
        """Kind and mining of each loss; None where the loss takes none, or is to use its own.

        Raises:
            InvalidSetting: an unknown loss or mining, or one that the loss does not take.
        """
        found: dict[tuple[str, str | None], None] = {}
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
            several = self.minings if takes and not slash else ()
            found |= dict.fromkeys((kind, each) for each in several or (mining or None,))
        if self.minings and not any(mining in self.minings for _, mining in found):
            raise InvalidSetting(
                f"None of the losses {list(self.losses)} takes a mining of --mining; got "
                f"{list(self.minings)}. Leave it out, or add one of "
                f"{', '.join(k for k in loss_kinds() if takes_mining(k))}."
            )
        return list(found)


def parse_bench(tree: Any) -> BenchConfig:
    """The grid a JSON tree describes; raises InvalidSetting naming every setting that is wrong."""
    return parse(BenchConfig, tree)
