"""Routes of a gallery: enrol, change, forget, and look at one item."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray
from PIL import Image

from dml.errors import InvalidSetting
from dml.names import MAX_ID_LENGTH
from dml.preprocessing import image_format, image_size
from dml.retrieval.gallery import Enrolment, Gallery, Item
from dml.serving.app import messages
from dml.serving.app.opened import OpenIndex
from dml.serving.app.routing import (
    ERRORS,
    Enroller,
    Forgetter,
    LimitRate,
    Name,
    Reader,
    TheService,
    audited,
)
from dml.serving.app.service import answered
from dml.serving.browsed import small_picture

router = APIRouter(prefix="/v1/indexes/{name}", tags=["gallery"], responses=ERRORS)

Id = Annotated[
    str,
    Path(description="of an item", min_length=1, max_length=MAX_ID_LENGTH, examples=["ann/0f8fad5bd9cb"]),
    messages.WithoutNul,
]
Identity = Annotated[
    str,
    Path(description="a label", min_length=1, max_length=MAX_ID_LENGTH, examples=["ann"]),
    messages.WithoutNul,
]
Side = Annotated[
    int | None,
    Query(
        ge=16, le=2_048, description="a WebP of at most so many pixels a side; left out: the file as it is"
    ),
]


@router.post("/enrol")
async def enrol(
    request: Request,
    name: Name,
    body: messages.EnrolRequest,
    service: TheService,
    caller: Enroller,
    limit_rate: LimitRate,
) -> messages.EnrolResponse:
    """Add images or vectors of one identity: durable and found by every search once this is answered."""
    limit_rate(len(body.images) + len(body.vectors) - 1)
    if bool(body.images) == bool(body.vectors):
        raise InvalidSetting("An enrolment must have images or vectors, one of them; got both or none.")
    max_pixels = service.settings.limits.pixels

    def write(gallery: Gallery) -> Enrolment:
        images = [image.content() for image in body.images]
        for image in images:
            image_size(image, max_pixels)
        vectors = _matrix(body.vectors) if body.vectors else None
        return gallery.enrol(
            body.identity,
            images=images,
            vectors=vectors,
            attributes=body.attributes,
            ids=body.ids,
            who=caller.label,
            quality=body.quality,
        )

    what = audited(request, "enrol", name, identity=body.identity, ids=body.ids or ())
    done, written = await service.write(name, what, write)
    return messages.EnrolResponse(
        **{**answered(written), "revision": done.revision}, identity=done.identity, ids=done.ids
    )


@router.patch("/items/{id:path}")
async def update(
    request: Request, name: Name, id: Id, body: messages.UpdateRequest, service: TheService, caller: Enroller
) -> messages.ChangeResponse:
    """Change attributes or the label of an item, enrolled or of the index."""
    what = audited(request, "update", name, ids=[id])
    done, written = await service.write(
        name,
        what,
        lambda gallery: gallery.update(id, attributes=body.attributes, label=body.label, who=caller.label),
    )
    return messages.ChangeResponse(**{**answered(written), "revision": done.revision}, ids=done.ids)


@router.delete("/items/{id:path}")
async def forget(
    request: Request, name: Name, id: Id, service: TheService, caller: Forgetter
) -> messages.ChangeResponse:
    """Remove an item: no search answers with it from now on."""
    what = audited(request, "forget", name, ids=[id])
    done, written = await service.write(name, what, lambda gallery: gallery.forget(id, who=caller.label))
    return messages.ChangeResponse(**{**answered(written), "revision": done.revision}, ids=done.ids)


@router.delete("/identities/{identity:path}")
async def forget_identity(
    request: Request, name: Name, identity: Identity, service: TheService, caller: Forgetter
) -> messages.ChangeResponse:
    """Remove all items of an identity."""
    what = audited(request, "forget", name, identity=identity)
    done, written = await service.write(
        name, what, lambda gallery: gallery.forget(identity=identity, who=caller.label)
    )
    return messages.ChangeResponse(**{**answered(written), "revision": done.revision}, ids=done.ids)


@router.get("/items/{id:path}")
async def item(request: Request, name: Name, id: Id, service: TheService, _: Reader) -> messages.Item:
    """An item's label, attributes and where its picture is."""
    with service.indexes.hold(name) as opened:
        found, has_picture = await service.run(opened, lambda: _item(opened, id))
        path = request.url_for("picture", name=name, id=id).path if has_picture else None
        return messages.Item(
            **answered(opened),
            id=found.id,
            label=found.label,
            attributes=found.attributes,
            enrolled=found.enrolled,
            picture=path,
        )


@router.get(
    "/pictures/{id:path}",
    name="picture",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The image file."}},
)
async def picture(name: Name, id: Id, service: TheService, _: Reader, side: Side = None) -> Response:
    """An item's image: the file as it is, or a small WebP without its metadata."""
    with service.indexes.hold(name) as opened:
        return await service.run(opened, lambda: _picture(opened, id, side))


def _item(opened: OpenIndex, id: str) -> tuple[Item, bool]:
    return opened.gallery.item(id), id in opened.gallery.ids_with_picture([id])


def _picture(opened: OpenIndex, id: str, side: int | None) -> Response:
    content = opened.gallery.picture(id)
    if side is not None:
        return Response(small_picture(content, side), media_type="image/webp")
    kind = image_format(content).partition(" ")[0]
    return Response(content, media_type=Image.MIME.get(kind, "application/octet-stream"))


def _matrix(vectors: list[list[float]]) -> NDArray[np.float32]:
    if len({len(vector) for vector in vectors}) > 1:
        raise InvalidSetting("Vectors must have the same dimension; got several. Send one length.")
    return np.asarray(vectors, dtype=np.float32)
