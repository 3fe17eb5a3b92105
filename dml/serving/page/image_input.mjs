/** Where one image goes in: dropped, pasted, picked from files or photographed. */

import { hasCamera, photograph } from "./camera.mjs";
import { say } from "./dialogs.mjs";
import { button, fill, h, icon } from "./dom.mjs";
import { putOn } from "./faces.mjs";
import { picture, readImage } from "./pictures.mjs";

let latest = null;

/** The image that was chosen last in this tab, for another view. @returns {import("./pictures.mjs").ImageFile|null} */
export function latestImage() {
  return latest;
}

/** @typedef {{kind: "image", image: import("./pictures.mjs").ImageFile} | {kind: "id", id: string, label: string|null, url: string|null} | {kind: "identity", identity: string}} Query */

/**
 * @param {{label: string, several?: boolean, onChoose: (query: Query) => void, onClear?: () => void}} options
 *   `several`: files are handed on one by one, and none is shown here.
 */
export function imageInput({ label, several = false, onChoose, onClear = () => {} }) {
  const file = h("input", { type: "file", accept: "image/*", hidden: true, "aria-label": `${label}: choose a file`, multiple: several });
  const phone = h("input", { type: "file", accept: "image/*", capture: "environment", hidden: true, "aria-label": `${label}: take a photo` });
  const element = h("div", { class: "drop", role: "group", "aria-label": label });
  let depth = 0;
  for (const input of [file, phone]) {
    input.addEventListener("change", () => {
      take(input.files);
      input.value = "";
    });
  }
  element.addEventListener("dragenter", (event) => over(event, 1));
  element.addEventListener("dragleave", (event) => over(event, -1));
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    over(event, -depth);
    take(event.dataTransfer.files);
  });
  showEmpty();

  function over(event, change) {
    event.preventDefault();
    depth += change;
    element.classList.toggle("over", depth > 0);
  }

  function showEmpty() {
    element.classList.remove("filled");
    fill(
      element,
      icon("image"),
      h("p", {}, h("strong", {}, several ? "Drop images" : "Drop an image"), "or paste one"),
      h("div", { class: "drop-actions" }, button(several ? "Choose files" : "Choose file", () => file.click(), { kind: "main" }), button("Photo", shoot, { iconName: "camera" })),
      file,
      phone,
    );
  }

  async function shoot() {
    if (!hasCamera()) return phone.click();
    try {
      const photo = await photograph();
      if (photo) await take([photo]);
    } catch {
      phone.click();
    }
  }

  /** @param {Iterable<Blob>} files */
  async function take(files) {
    const images = [...files].filter((each) => !each.type || each.type.startsWith("image/"));
    if (!images.length) {
      if ([...files].length) say("That is not an image file.");
      return;
    }
    for (const each of several ? images : images.slice(0, 1)) {
      const image = await readImage(each);
      latest = image;
      if (!several) show({ kind: "image", image });
      onChoose({ kind: "image", image });
    }
  }

  /** @param {Query} query */
  function show(query) {
    const shown = query.kind === "image" ? framed(query.image) : picture(query.url, `Item ${query.id}`);
    element.classList.add("filled");
    const clear = button("Clear", () => {
      showEmpty();
      onClear();
      element.querySelector("button").focus();
    });
    fill(element, shown, h("div", { class: "drop-actions" }, button("Another file", () => file.click()), clear), file, phone);
  }

  /** The query's own picture, once it is loaded; null where an item is shown. @returns {Promise<HTMLImageElement|null>} */
  async function loadedImage() {
    const image = element.querySelector(".frame img");
    await image?.decode().catch(() => {});
    return image?.naturalWidth ? image : null;
  }

  /** Boxes of faces on the picture; null takes them away. */
  function mark(boxes) {
    const frame = element.querySelector(".frame");
    if (frame) putOn(frame, boxes);
  }

  return { element, show, take, clear: showEmpty, loadedImage, mark };
}

/** A picture in a frame of its own proportions, so that what lies on it is where it belongs. */
function framed(image) {
  const shown = h("img", { src: image.url, alt: `Your image ${image.name}` });
  const frame = h("div", { class: "frame" }, shown);
  shown.addEventListener("load", () => frame.style.setProperty("--ratio", shown.naturalWidth / shown.naturalHeight));
  return h("div", { class: "mount" }, frame);
}

/** Give pasted images to an input for as long as its element is on the page. */
export function onPaste(inputs) {
  const listener = (event) => {
    const input = inputs.find((each) => each.element.isConnected && each.wants?.() !== false);
    if (!input) return document.removeEventListener("paste", listener);
    const files = [...(event.clipboardData?.files ?? [])].filter((each) => each.type.startsWith("image/"));
    if (files.length) {
      event.preventDefault();
      input.take(files);
    }
  };
  document.addEventListener("paste", listener);
}

/** A query as the service takes it. */
export function asQuery(query) {
  if (query.kind === "image") return { image: { base64: query.image.base64 } };
  return query.kind === "id" ? { id: query.id } : { identity: query.identity };
}
