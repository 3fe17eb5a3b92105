"""`dml calibrate`, `dml identify` and `dml compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dml.cli.app import Json, Store, store_uri, verb
from dml.cli.faces import Faces, faces_of, require_image, show_faces, wants_all
from dml.cli.output import emit, print_table
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.reports import (
        CalibrationReport,
        Identification,
        IdentifiedFaces,
        Verification,
        VerifiedFaces,
    )

Index = Annotated[str | None, typer.Option("--index", help="default: the store's only index")]
Fpir = Annotated[
    float | None,
    typer.Option(
        help="false-positive identification rate, over all scopes; default: 0.01, or what was calibrated"
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope", help='a part of the gallery, as a filter; repeatable, tried in order; "" is all of it'
    ),
]
Threshold = Annotated[
    float | None, typer.Option(min=-1, max=1, help="similarity to accept from, instead of a calibrated one")
]

_USUAL_FPIR = 0.01


@verb()
def calibrate(
    index: Annotated[str, typer.Argument(help="NAME (the version in use) or NAME@VERSION")],
    fpir: Fpir = None,
    scopes: Scopes = None,
    by: Annotated[
        list[str] | None, typer.Option(help="a column, each of whose values is a scope; repeatable")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "CalibrationReport":
    """Set an index's thresholds for a false-positive rate, and check them on held-out identities."""
    from flows.calibrate import calibrate_flow
    from flows.policy import run

    rate = _USUAL_FPIR if fpir is None else fpir
    report = run(calibrate_flow, index, rate, scopes or [], by or [], store_uri(store))
    nothing = None if report.num_promised else InvalidSetting(report.scopes[0].refused)
    return emit(report, as_json, _show_thresholds, error=nothing)


def _show_thresholds(report: "CalibrationReport") -> None:
    print_table(f"thresholds of {report.thresholds.index}", report.table())
    for scope in report.shown:
        if scope.refused and report.num_promised:
            print(f"none for {scope.scope or 'the whole gallery'}: {scope.refused}")
    if report.summary:
        print(f"{report.summary}; --json prints all")


@verb()
def identify(
    image: Annotated[Path, typer.Argument(help="image file, or a .npy file with one vector")],
    name: Index = None,
    scopes: Scopes = None,
    hints: Annotated[
        list[str] | None, typer.Option("--hint", help="what is known of the person, name=value; repeatable")
    ] = None,
    fpir: Fpir = None,
    threshold: Threshold = None,
    never_ask: Annotated[
        list[str] | None, typer.Option(help="an attribute not to ask for; repeatable")
    ] = None,
    faces: Faces = "main",
    store: Store = None,
    as_json: Json = False,
) -> "Identification | IdentifiedFaces":
    """Find out who of those enrolled an image shows, or that it is none of them."""
    from dml.cli.queries import read_probe

    known = dict(map(_name_and_value, hints or []))
    is_all, probe = wants_all(faces), read_probe(image)
    picture = require_image(probe, image) if is_all else b""
    from dml.reports import IdentifiedFace, IdentifiedFaces
    from dml.serving.searcher import Searcher  # takes seconds to import

    searcher = Searcher.open(store_uri(store), name)
    options: dict[str, Any] = {
        "scopes": scopes or [""],
        "hint": known,
        "fpir": fpir,
        "threshold": threshold,
        "never_ask": never_ask or [],
    }
    if is_all:
        found = faces_of(IdentifiedFace, searcher.identify_faces(picture, **options))
        return emit(IdentifiedFaces(index=str(searcher.index), faces=found), as_json, _show_identified_faces)
    return emit(searcher.identify(probe, **options), as_json, _show_identification)


def _show_identified_faces(report: "IdentifiedFaces") -> None:
    show_faces(report.faces, _show_identification)


def _name_and_value(hint: str) -> tuple[str, str]:
    name, equals, value = hint.partition("=")
    if not (equals and name.strip()):
        raise InvalidSetting(f"--hint must be name=value; got {hint!r}.")
    return name.strip(), value.strip()


def _show_identification(result: "Identification") -> None:
    where = "the whole gallery" if result.scope == "" else result.scope
    if result.status == "identified":
        print(f"{result.identity}, similarity {result.similarity:.4f}, in {where}: {result.id}")
    elif result.status == "unknown":
        print("unknown: nobody enrolled is so similar")
    else:
        num = result.tried[-1].candidates
        what = (
            f"needs a hint: --hint {result.ask}=..."
            if result.ask
            else "undecided: no attribute tells them apart"
        )
        print(f"{what}; {num} identities of {where} could be it")
    rows = [
        {
            "scope": tried.scope or "the whole gallery",
            "FPIR": "" if tried.share is None else f"{100 * tried.share:.3g} %",
            "threshold": "nobody is in it" if tried.threshold is None else tried.threshold,
            "candidates": tried.candidates,
        }
        for tried in result.tried
    ]
    print_table(result.index, rows)


@verb()
def compare(
    image: Annotated[Path, typer.Argument(help="image file, or a .npy file with one vector")],
    other: Annotated[Path | None, typer.Argument(help="another one, to compare it with")] = None,
    identity: Annotated[
        str | None, typer.Option(help="the label of an identity; compare with all its images instead")
    ] = None,
    name: Index = None,
    fmr: Annotated[
        float | None,
        typer.Option(help="false-match rate: impostors who are taken for the other; default: 0.001"),
    ] = None,
    threshold: Threshold = None,
    faces: Faces = "main",
    store: Store = None,
    as_json: Json = False,
) -> "Verification | VerifiedFaces":
    """Decide whether two images show the same, or whether an image shows an identity of an index."""
    if (other is None) == (identity is None):
        got = "none" if other is None else f"{other} and --identity {identity}"
        raise InvalidSetting(f"An image is compared with another or with an --identity; got {got}. Name one.")
    from dml.cli.queries import read_probe

    is_all, probe = wants_all(faces), read_probe(image)
    picture = require_image(probe, image) if is_all else b""
    second = identity if other is None else read_probe(other)
    from dml.reports import VerifiedFace, VerifiedFaces
    from dml.serving.searcher import Searcher  # takes seconds to import

    assert second is not None
    searcher = Searcher.open(store_uri(store), name)
    if is_all:
        answers = searcher.verify_faces(picture, second, fmr=fmr, threshold=threshold)
        found = faces_of(VerifiedFace, answers)
        is_same = any(face.same for face in found)
        report = VerifiedFaces(index=str(searcher.index), same=is_same, faces=found)
        return emit(report, as_json, _show_verified_faces)
    verification = searcher.verify(probe, second, fmr=fmr, threshold=threshold)
    return emit(verification, as_json, _show_verification)


def _show_verified_faces(report: "VerifiedFaces") -> None:
    show_faces(report.faces, _show_verification)


def _show_verification(result: "Verification") -> None:
    rate = "" if result.fmr is None else f" for a false-match rate of {100 * result.fmr:.3g} %"
    images = "" if result.identity is None else f" to the most similar of {result.images} images"
    verdict = "same" if result.same else "different"
    print(f"{verdict}: similarity {result.similarity:.4f}{images}, threshold {result.threshold:.4f}{rate}")
