/** The faces of a picture: boxes on it, of which one is chosen, and the same as a row of crops. */

import { h, newId, text } from "./dom.mjs";

const CROP = 96; // pixels, twice the size that is shown
const AROUND = 0.15; // of the face's side, shown beyond its box

/**
 * @typedef {{box: {left: number, top: number, width: number, height: number}, name: string, known: boolean}} Face
 *   `box` in pixels of the picture upright; `known`: somebody above the threshold.
 */

/** What a screen reader says of a face. */
function spoken(face, place, count) {
  return `Face ${place + 1} of ${count}: ${face.name}`;
}

/**
 * Boxes on a picture, as radio buttons: the arrow keys go from face to face.
 *
 * @param {HTMLImageElement} image loaded
 * @param {Face[]} faces
 * @param {number} chosen its place
 * @param {(place: number) => void} onChoose
 */
export function faceBoxes(image, faces, chosen, onChoose) {
  const group = newId("faces");
  const share = ({ left, top, width, height }) => ({ "--left": left / image.naturalWidth, "--top": top / image.naturalHeight, "--width": width / image.naturalWidth, "--height": height / image.naturalHeight });
  return h(
    "div",
    { class: "faces", role: "radiogroup", "aria-label": "Faces in the picture" },
    faces.map((face, place) =>
      h(
        "label",
        { class: face.known ? "face known" : "face", style: share(face.box), title: face.name },
        h("input", { type: "radio", name: group, checked: place === chosen, "aria-label": spoken(face, place, faces.length), on: { change: () => onChoose(place) } }),
        h("span", { class: "face-number", "aria-hidden": "true" }, place + 1),
      ),
    ),
  );
}

/**
 * The faces as a row of buttons, each with its crop and who it is.
 *
 * @param {HTMLImageElement} image loaded
 */
export function faceRow(image, faces, chosen, onChoose) {
  return h(
    "div",
    { class: "face-row", role: "group", "aria-label": `${faces.length} faces` },
    faces.map((face, place) =>
      h("button", { type: "button", class: "face-chip", "aria-pressed": String(place === chosen), "aria-label": spoken(face, place, faces.length), on: { click: () => onChoose(place) } }, crop(image, face.box), h("span", { class: "stack" }, text(face.name, { class: "who" }), face.detail && h("span", { class: "small quiet" }, face.detail))),
    ),
  );
}

/** Show on the boxes and in the row which face is chosen, without making them anew: the focus stays. */
export function choose(place, boxes, row) {
  const radio = boxes?.querySelectorAll("input")[place];
  if (radio) radio.checked = true;
  const strip = row?.querySelector(".face-row");
  strip?.querySelectorAll("button").forEach((each, at) => {
    each.setAttribute("aria-pressed", String(at === place));
    if (at === place) strip.scrollLeft = each.offsetLeft - strip.offsetLeft - strip.clientWidth / 4;
  });
}

function crop(image, { left, top, width, height }) {
  const canvas = h("canvas", { class: "crop", width: CROP, height: CROP, "aria-hidden": "true" });
  const side = Math.max(width, height) * (1 + 2 * AROUND);
  const [x, y] = [left + width / 2 - side / 2, top + height / 2 - side / 2];
  canvas.getContext("2d").drawImage(image, x, y, side, side, 0, 0, CROP, CROP);
  return canvas;
}

/** Put boxes on the picture of a frame; none take them away. */
export function putOn(frame, boxes) {
  frame.querySelector(".faces")?.remove();
  if (boxes) frame.append(boxes);
  return frame;
}
