"""What a run starts from: new weights, weights of a file, or a package of the store."""

import torch
from torch import nn

from dml.config import EncoderConfig, ExperimentConfig, InitialConfig, Tuning
from dml.config.experiment import parse_experiment
from dml.errors import IncompatibleArtifact, InvalidSetting
from dml.models.encoder import Encoder
from dml.models.package import Package, find_package, has_detector, load_package, runtime_of, save_package
from dml.refs import ModelRef, PackageRef

_OF_THE_EXPERIMENT = ("dropout", "unit_length", "freeze_batch_norm")
"""Of an encoder's settings, those that decide its training and not its weights."""


def initial_encoder(config: ExperimentConfig) -> Encoder:
    """The initial encoder of a run, equal on every worker.

    Raises:
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: the package to start from is not there, was
            changed, or is not of the experiment's encoder.
    """
    initial = config.initial
    encoder = Encoder(
        config.encoder, channels=config.preprocessing.channels, seed=config.seed, initialize=initial is None
    )
    if initial is not None:
        _start_from(encoder, _load(initial))
    return encoder


def start_from(config: ExperimentConfig, model: ModelRef, tune: Tuning) -> ExperimentConfig:
    """An experiment that starts from a registered model: with its encoder and its preprocessing.

    A model without a head, as one from elsewhere, is given a linear one that changes nothing at first.

    Args:
        config: batches, loss, optimizer and the rest.
        model: trained here or imported.
        tune: what is trained.

    Raises:
        IncompatibleArtifact: torch does not compute the model, so that it cannot be trained.
    """
    package = _load_trainable(model.package, str(model))
    trained = package.encoder.config.model_dump(mode="json")
    chosen = config.encoder.model_dump(mode="json")
    encoder = {**trained, **{name: chosen[name] for name in _OF_THE_EXPERIMENT}}
    if trained["head"] == "none":
        encoder["head"] = chosen["head"] if tune != "frozen" else "linear"
    if tune == "lora":
        encoder["freeze_batch_norm"] = True  # its statistics would change what the adapters are added to
    initial = InitialConfig(
        uri=model.package.uri, fingerprint=model.package.fingerprint, model=str(model), tune=tune
    )
    changes = {
        "encoder": encoder,
        "preprocessing": package.preprocessing.model_dump(mode="json"),
        "initial": initial.model_dump(mode="json"),
    }
    if config.gate.at_least is None and config.evaluation.baselines:
        changes["gate"] = {**config.gate.model_dump(mode="json"), "at_least": "before_training"}
    return parse_experiment({**config.model_dump(mode="json"), **changes})


def save_initial(store: str, config: ExperimentConfig) -> PackageRef:
    """The package of a run's initial encoder: the one it starts from, where both embed alike."""
    if config.initial is None:
        return save_package(store, initial_encoder(config), config.preprocessing)
    package = _load(config.initial)
    theirs, ours = package.encoder.config, config.encoder
    same_embedding = theirs.dim == ours.dim and theirs.head in ("none", ours.head)
    if same_embedding and config.preprocessing == package.preprocessing:
        return package.ref
    return save_package(store, initial_encoder(config), config.preprocessing, initial=package.ref)


def require_initial(config: ExperimentConfig) -> None:
    """Raise as `initial_encoder` does, before anything is started."""
    if config.initial is not None:
        initial_encoder(config)


def _load(initial: InitialConfig) -> Package:
    ref = find_package(initial.uri)
    if ref.fingerprint != initial.fingerprint:
        raise IncompatibleArtifact(
            f"Training must start from the package {initial.fingerprint[:12]}; {initial.uri} has "
            f"{ref.version}. Name the model again: dml train DATASET --from MODEL."
        )
    return _load_trainable(ref, initial.model or str(ref))


def _load_trainable(ref: PackageRef, name: str) -> Package:
    """The package; raises IncompatibleArtifact where there is nothing that torch could train."""
    if runtime_of(ref) != "torch":
        raise IncompatibleArtifact(
            f"Only a network that torch computes can be trained further; {name}, {ref.source}, is none. "
            "Import its weights as a network of torch, dml models import safetensors:FILE@timm:NAME --yes, "
            "or train another: dml train DATASET."
        )
    if has_detector(ref):
        raise IncompatibleArtifact(
            f"Training takes images as they are; {name} embeds the face that it detects in them. Import the "
            "network without --detector, and train it on a dataset of aligned crops (docs/faces.md)."
        )
    return load_package(ref.uri, device="cpu")


def _start_from(encoder: Encoder, package: Package) -> None:
    """Load a package's weights; a head that it lacks begins as the identity, where the lengths agree."""
    theirs, ours = package.encoder.config, encoder.config
    _require_same_features(theirs, ours, package)
    weights = package.encoder.state_dict()
    keeps_head = theirs.head == ours.head and theirs.dim == ours.dim
    if not keeps_head:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        head = encoder.head
        if theirs.head == "none" and isinstance(head, nn.Linear) and theirs.dim == ours.dim:
            with torch.no_grad():
                nn.init.eye_(head.weight)
                nn.init.zeros_(head.bias)
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    encoder.load_state_dict(weights)


def _require_same_features(theirs: EncoderConfig, ours: EncoderConfig, package: Package) -> None:
    for name in ("backbone", "pooling", "layer_norm"):
        wanted, got = getattr(theirs, name), getattr(ours, name)
        if wanted != got:
            raise InvalidSetting(
                f"encoder.{name} must be that of the {package.ref} that training starts from, {wanted}; got "
                f"{got}. Leave it out, or train without --from."
            )
