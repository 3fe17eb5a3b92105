/** Take a photo: the camera in a dialog, or the phone's own camera where the page may not use it. */

import { openDialog } from "./dialogs.mjs";
import { button, h } from "./dom.mjs";
import { drawn } from "./pictures.mjs";

/** Whether there can be a camera here: browsers give it to pages of this machine, or over HTTPS. */
export function hasCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * @returns {Promise<Blob|null>} null: none was taken
 * @throws {DOMException} there is no camera, or it was not allowed
 */
export async function photograph() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  return new Promise((resolve) => {
    let photo = null;
    const video = h("video", { autoplay: true, muted: true, playsinline: true, "aria-label": "What the camera sees" });
    video.srcObject = stream;
    const shutter = button("Take photo", take, { kind: "main", iconName: "camera" });
    const dialog = openDialog("Take a photo", [h("div", { class: "camera" }, video, h("div", { class: "dialog-end" }, shutter))]);
    shutter.focus();
    dialog.addEventListener("close", () => {
      for (const track of stream.getTracks()) track.stop();
      resolve(photo);
    });

    async function take() {
      photo = await drawn(video, video.videoWidth, video.videoHeight);
      dialog.close();
    }
  });
}
