"""A checkpoint written in shards is the whole run's: it goes on with any number of workers, cut or whole."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml import losses
from dml.errors import IncompatibleArtifact
from dml.training.checkpoint import has_part, read_checkpoint, write_checkpoint
from dml.training.gather import gather
from dml.training.optimizer import clip_gradients
from dml.training.spawn import run_ranks
from tests.losses.cases import DIM, LABELS, scattered

MAKERS = {
    "CosFace, sampled": partial(losses.CosFace, 13, DIM, seed=5, sample_rate=0.4),
    "Softmax": partial(losses.Softmax, 4, DIM, seed=5),  # of three ranks the last has no class
    "SoftTriple": partial(losses.SoftTriple, 13, DIM, centers_per_class=2, seed=5),
}
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
}
STOP, END = 4, 8


class Run:
    """A small training whose gradients are clipped at every step."""

    def __init__(self, name: str, kind: str, *, sharded: bool) -> None:
        torch.manual_seed(0)
        encoder = nn.Linear(DIM, DIM, bias=False).double()
        self.modules = {"encoder": encoder, "loss": MAKERS[name](sharded=sharded).double()}
        self.both = nn.ModuleDict(self.modules)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.optimizer = OPTIMIZERS[kind](self.both.parameters())
        self.num_classes = self.modules["loss"].num_classes
        learner = _Learner(self.both)
        losses.keep_shards_local(learner)
        self.learner = DistributedDataParallel(learner) if self.world_size > 1 else learner

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            images = scattered(seed=step).chunk(self.world_size)[self.rank]
            labels = (LABELS[step % len(LABELS)]() % self.num_classes).chunk(self.world_size)[self.rank]
            self.optimizer.zero_grad()
            self.learner(images, labels).backward()
            clip_gradients(self.optimizer, 0.5, losses.sharded_parameters(self.both))
            self.optimizer.step()

    def write(self, folder: Path) -> None:
        if has_part(self.rank, self.modules):
            part = folder / f"own-{self.rank}"
            part.mkdir(parents=True)
            write_checkpoint(
                part, step=STOP, run="a", modules=self.modules, optimizer=self.optimizer, rank=self.rank
            )
            for path in part.iterdir():
                path.rename(folder / path.name)
            part.rmdir()

    def read(self, folder: Path) -> None:
        assert read_checkpoint(folder, run="a", modules=self.modules, optimizer=self.optimizer) == STOP

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.both.state_dict().items()}


class _Learner(nn.Module):
    def __init__(self, both: nn.ModuleDict) -> None:
        super().__init__()
        self.both = both

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.both["encoder"](images))
        return self.both["loss"](embeddings, labels, gather(embeddings, labels))


def runs(folder: Path):
    for name in MAKERS:
        for kind in OPTIMIZERS:
            yield name, kind, folder / f"{name}-{kind}"


def stop_at_step_four(folder: Path) -> None:
    for name, kind, at in runs(folder):
        run = Run(name, kind, sharded=True)
        run.steps(0, STOP)
        run.write(at)


def resume(folder: Path, sharded: bool) -> dict[str, dict[str, Tensor]]:
    ends = {}
    for name, kind, at in runs(folder):
        run = Run(name, kind, sharded=sharded)
        for parameter in run.both.parameters():
            parameter.data.zero_()
        run.read(at)
        run.steps(STOP, END)
        ends[at.name] = run.weights()
    return ends


@pytest.fixture(scope="module")
def written_by_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    run_ranks(2, stop_at_step_four, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[str, Tensor]]:
    ends = {}
    for name, kind, at in runs(Path()):
        run = Run(name, kind, sharded=False)
        run.steps(0, END)
        ends[at.name] = run.weights()
    return ends


def check(of_ranks: list[dict[str, dict[str, Tensor]]], undisturbed: dict[str, dict[str, Tensor]]) -> None:
    for run, expected in undisturbed.items():
        for name, value in expected.items():
            parts = [of_rank[run][name] for of_rank in of_ranks]
            whole = parts[0] if parts[0].shape == value.shape else torch.cat(parts)
            torch.testing.assert_close(whole, value, rtol=1e-8, atol=1e-11, msg=f"{run}: {name}")


def test_written_by_two_it_continues_alone_whole_or_as_the_one_shard(written_by_two, undisturbed):
    for sharded in (False, True):
        check([resume(written_by_two, sharded)], undisturbed)


def test_written_by_two_it_continues_with_three(written_by_two, undisturbed):
    check(run_ranks(3, resume, written_by_two, True), undisturbed)


def test_written_by_one_it_continues_with_two(tmp_path, undisturbed):
    for name, kind, at in runs(tmp_path):
        run = Run(name, kind, sharded=False)
        run.steps(0, STOP)
        run.write(at)
    check(run_ranks(2, resume, tmp_path, True), undisturbed)


def test_every_rank_writes_its_own_rows_alone(written_by_two):
    at = written_by_two / "CosFace, sampled-adamw"
    names = {"encoder.safetensors", "loss.safetensors", "optimizer.safetensors", "state.json"}
    cut = {f"{name}.rank-{rank:05d}.safetensors" for name in ("loss", "optimizer") for rank in (0, 1)}
    lists = {f"files.rank-{rank:05d}.json" for rank in (0, 1)}
    assert {path.name for path in at.iterdir()} == names | cut | lists
    sizes = [(at / f"optimizer.rank-{rank:05d}.safetensors").stat().st_size for rank in (0, 1)]
    assert 2 * 6 * DIM * 8 < sizes[1] < sizes[0] < 2 * 7 * DIM * 8 + 512
    assert json.loads((at / "state.json").read_text())["step"] == STOP


def test_a_checkpoint_without_a_ranks_file_is_refused(written_by_two, tmp_path):
    at = written_by_two / "CosFace, sampled-adamw"
    for path in at.iterdir():
        if path.name != "loss.rank-00001.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(IncompatibleArtifact, match="has 7 of the rows 0 to 13"):
        Run("CosFace, sampled", "adamw", sharded=False).read(tmp_path)
