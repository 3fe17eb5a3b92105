"""`dml models import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Settings, Store, store_uri, verb
from dml.cli.models import models
from dml.cli.output import emit, print_table, visible
from dml.cli.pictures import require_picture, write_picture
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.models.external import External
    from dml.refs import DatasetRef
    from dml.reports import ModelImportReport

_BY_SUFFIX = {".onnx": "onnx", ".safetensors": "safetensors", ".pth": "safetensors"}


@verb(models.command, name="import")
def import_model(
    context: typer.Context,
    embedder: Annotated[
        str, typer.Argument(help="a file, or an address as timm:NAME; see docs/pretrained.md")
    ],
    name: Annotated[
        str | None, typer.Option(help="name of what is made; default: the dataset's, else the file's")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="NAME or NAME@VERSION; to try it on, and to evaluate it by its test split"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="pretrained weights, a safetensors or .pth file")
    ] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="how the network takes images, a JSON file; default: FILE.json")
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            help="a face detector's ONNX file, as of YuNet; the largest face of each image is detected, "
            "aligned and cropped first"
        ),
    ] = None,
    settings: Settings = None,
    license: Annotated[str, typer.Option(help="license of what embeds; for the registry")] = "",
    picture: Annotated[
        Path, typer.Option(help="write a picture into this PNG file; of an image as the network sees it")
    ] = Path("preprocessed.png"),
    yes: Annotated[bool, typer.Option("--yes", help="register it; without, it is only tried")] = False,
    store: Store = None,
    as_json: Json = False,
) -> "ModelImportReport":
    """Try a network from elsewhere on ten images; with --yes register it, and let the gate judge it."""
    from dml.data.dataset import find_dataset
    from dml.models.external import ImportConfig, Options, preview, read_embedder
    from dml.reports import ModelImportReport

    given_store, given_json = context.obj or (None, False)
    root, as_json = store_uri(store or given_store), as_json or given_json
    address = _address(embedder)
    source = None if dataset is None else find_dataset(root, dataset)
    if source is not None and not yes:
        require_picture(picture)
    config = ImportConfig().overridden(settings or [])
    network = read_embedder(address, Options(weights, preprocessing, license, detector, config))
    name = name or (source.name if source else _name_of(address))
    report = ModelImportReport(
        source=network.source,
        dim=network.contents.dim,
        license=license or network.license,
        notes=list(network.notes),
        preprocessing=network.contents.preprocessing.model_dump(mode="json"),
    )
    if yes:
        from flows.import_model import import_model_flow
        from flows.policy import run

        files = {"weights": weights, "preprocessing": preprocessing, "detector": detector}
        given = {key: str(file) for key, file in files.items() if file is not None}
        model = run(
            import_model_flow, address, name, dataset, **given, license=license, settings=settings, store=root
        )
        report = report.model_copy(update={"model": model})
    elif source is not None:
        report = _tried(report, network, source, picture)
    else:
        with preview(network):  # which checks it, as `--yes` will
            pass
    return emit(report, as_json, _show)


def _address(embedder: str) -> str:
    """A file's address by what its name ends in; any other text as it is."""
    kind = _BY_SUFFIX.get(Path(embedder).suffix.lower())
    return f"{kind}:{embedder}" if kind is not None and ":" not in embedder else embedder


def _name_of(address: str) -> str:
    from dml.names import suggest_name

    name = suggest_name(Path(address.partition(":")[2]).stem)
    if name is None:
        raise InvalidSetting(f"The model needs a name, and {address!r} suggests none. Give one with --name.")
    return name


def _tried(
    report: "ModelImportReport", network: "External", dataset: "DatasetRef", picture: Path
) -> "ModelImportReport":
    from dml.trial import Trial

    trial = Trial(network, dataset)
    write_picture(picture, trial.picture())
    return report.model_copy(update={"picture": str(picture.resolve()), "neighbors": trial.neighbors})


def _show(report: "ModelImportReport") -> None:
    print(f"{visible(report.source)}: embeddings of {report.dim} dimensions")
    for note in report.notes:
        print(f"- {visible(note)}")
    print_table("an image becomes", [report.preprocessing])
    if report.neighbors:
        print_table("nearest neighbours", [neighbor.model_dump() for neighbor in report.neighbors])
        print(f"an image as the network sees it: {report.picture}")
    if report.model is not None:
        print(f"model {report.model} is {report.model.alias or 'registered'}: {report.model.reason}")
        return
    if not report.neighbors:
        print("to see what it does with ten images of a dataset: --dataset NAME")
    print("nothing was registered; with --yes it is")
