"""Every loss, with all it combines with, is the same on any number of workers; and what is not is found."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from dml import losses
from dml.losses import References
from dml.training.conformance import Finding, Report, conformance, main
from dml.training.conformance_table import DIM, table

pytestmark = pytest.mark.timeout(600)
slow = pytest.mark.slow  # what starts groups of processes

WORLD_SIZES = (1, 2, 3)


class OwnNegatives(nn.Module):
    """Compares a worker's rows with each other alone, as a loss that was never told of workers."""

    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return losses.SupCon()(embeddings, labels)


class OwnCount(nn.Module):
    """Divides by this worker's number of rows that count, instead of everybody's."""

    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        references = References(references.embeddings, references.labels, references.first_row)
        return losses.SupCon()(embeddings, labels, references)


class TimesWorkers(nn.Module):
    """Right, but for its own parameter's gradient: the peers' mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        world_size = len(references.labels) // len(labels)
        temperature = self.temperature * world_size - self.temperature.detach() * (world_size - 1)
        return (embeddings.exp() * temperature).mean()


class OwnMemory(nn.Module):
    """Right in all it gives, but remembers what this worker saw and not what all saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(DIM))

    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        self.seen = embeddings.detach().mean(0)
        return embeddings.exp().mean()


class Nothing(nn.Module):
    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        return 0.0 * embeddings.sum()


class Margin(nn.Module):
    """Right: a user's own loss with a parameter, told how many classes there are."""

    def __init__(self, num_classes: int, *, scale: float = 2.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_classes))
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References) -> Tensor:
        similarities = embeddings @ references.embeddings.T
        same = labels[:, None] == references.labels
        return (self.beta[labels, None] - self.scale * similarities * same).square().mean()


FAULTY = [OwnNegatives, OwnCount, TimesWorkers, OwnMemory, Nothing]


@pytest.fixture(scope="module")
def findings() -> dict[tuple[str, int], Finding]:
    """All of them at once: a group of processes takes longer to start than a loss to be tried."""
    faulty = {loss.__name__: loss for loss in FAULTY}
    report = conformance({**table(), **faulty, "mine": Margin}, world_sizes=WORLD_SIZES, num_steps=5)
    return {(finding.loss, finding.world_size): finding for finding in report.findings}


@slow
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("loss", [*table(), "mine"])
def test_workers_equal_one_process_in_value_gradients_and_trained_weights(loss, world_size, findings):
    assert findings[loss, world_size].passed, Report((findings[loss, world_size],))


@slow
def test_four_workers_equal_one_process_after_ten_steps():
    """Each kind of batch twice, with the defaults; what a loss combines with is compared after five steps."""
    defaults = {name: recipe for name, recipe in table().items() if "," not in name}
    report = conformance(defaults, world_sizes=[4], num_steps=10)
    assert report.passed, report


@slow
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (OwnNegatives, {"float64 value", "float64 backbone", "trained", "float32 value", "float32 backbone"}),
        (OwnCount, {"float64 value", "float64 backbone", "trained", "float32 value", "float32 backbone"}),
        (TimesWorkers, {"float64 own", "trained", "float32 own"}),
        (OwnMemory, {"trained"}),
    ],
)
def test_a_difference_between_workers_is_detected(loss, wrong, world_size, findings):
    finding = findings[loss.__name__, world_size]
    assert wrong <= {name for name, error in finding.errors.items() if error > 1e-4}
    assert not finding.passed
    assert findings[loss.__name__, 1].passed, "one worker has nobody to differ from"


@slow
def test_a_loss_that_does_nothing_proves_nothing(findings):
    assert not findings["Nothing", 2].passed
    assert str(Report((findings["Nothing", 2],))).endswith("idle")


@pytest.mark.parametrize("loss", ["Contrastive", "Margin", "TripletMargin"])
def test_every_loss_that_mines_meets_every_miner_with_and_without_a_memory(loss):
    mined = {f"{loss}, {mining}" for mining in losses.MINING}
    remembering = {f"{name}, memory" for name in mined}
    # N-pair tuples are formed within a batch; the miner refuses anchors that are not among the references.
    assert (mined | remembering) - set(table()) == {f"{loss}, n_pair, memory"}


def test_every_loss_is_in_the_table():
    assert {loss.__name__ for loss in losses.LOSSES.values()} <= set(table())


@slow
def test_the_command_line_checks_users_own_losses_and_fails_if_one_does():
    command = [sys.executable, "-m", "dml.training.conformance", f"{__name__}:Margin", f"{__name__}:OwnCount"]
    ended = subprocess.run([*command, "--world-sizes", "2", "--steps", "2"], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert [line.split()[-1] for line in ended.stdout.splitlines()[1:]] == ["ok", "FAILED"]


def test_the_command_line_is_content_where_all_pass(capsys):
    assert main([f"{__name__}:Margin", "--world-sizes", "1", "--steps", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("ok")


@pytest.mark.parametrize(("path", "says"), [("torch", "package.module:Name"), ("torch:NoLoss", "importable")])
def test_a_loss_that_cannot_be_found_is_refused(path, says):
    with pytest.raises(SystemExit, match=says):
        main([path])
