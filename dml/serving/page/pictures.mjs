/** Pictures of items, and image files that users choose. */

import { headers, key } from "./api.mjs";
import { h } from "./dom.mjs";

const LONGEST = 1600; // pixels; a larger photo is made smaller before it is sent
const SENT_AS_IT_IS = 4 << 20; // bytes

/** @typedef {{base64: string, url: string, name: string}} ImageFile */

/**
 * A picture of an item that loads when it is seen.
 *
 * @param {string|null} url null: there is no picture, and none is asked for
 * @param {string} alt
 * @param {string} [tag] "button" where it can be clicked
 * @param {Object<string, unknown>} [properties]
 */
export function picture(url, alt, tag = "span", properties = {}) {
  const frame = h(tag, { class: "picture", ...(tag === "button" && { type: "button" }), ...properties });
  const showNone = () => {
    frame.classList.add("missing");
    frame.replaceChildren(h("span", { role: "img", "aria-label": `${alt}, without a picture` }, "no picture"));
  };
  if (url === null) {
    showNone();
    return frame;
  }
  const image = h("img", { alt, loading: "lazy", decoding: "async", draggable: "false" });
  image.addEventListener("error", showNone);
  if (key()) load(image, url);
  else image.src = url;
  frame.append(image);
  return frame;
}

/** With a key a picture cannot be an address alone. */
async function load(image, url) {
  const response = await fetch(url, { headers: headers() }).catch(() => null);
  if (!response?.ok) image.dispatchEvent(new Event("error"));
  else image.src = URL.createObjectURL(await response.blob());
}

/**
 * Read an image file.
 *
 * @param {File|Blob} file
 * @returns {Promise<ImageFile>}
 */
export async function readImage(file) {
  const smaller = file.size > SENT_AS_IT_IS ? await reduced(file) : file;
  return { base64: toBase64(new Uint8Array(await smaller.arrayBuffer())), url: URL.createObjectURL(smaller), name: file.name ?? "image" };
}

async function reduced(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return file; // the service says what is wrong with it
  const factor = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  return drawn(bitmap, Math.round(bitmap.width * factor), Math.round(bitmap.height * factor));
}

/** What a video or bitmap shows, as a JPEG. */
export function drawn(source, width, height) {
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function toBase64(bytes) {
  let binary = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(binary);
}
