/** Modal dialogs: a question with a confirmation, and one with content; and short messages at the bottom. */

import { button, h, newId } from "./dom.mjs";
import { failedNotice } from "./states.mjs";

/**
 * A dialog that is removed when it closes; Escape closes it and the focus goes back.
 *
 * @param {string} title
 * @param {Node[]} content
 * @param {{narrow?: boolean}} [options]
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, content, { narrow = false } = {}) {
  const id = newId("dialog");
  const opener = document.activeElement;
  const close = button("", () => dialog.close(), { kind: "bare square", iconName: "close", "aria-label": "Close" });
  const head = h("div", { class: "row apart" }, h("h2", { id }, title), close);
  const dialog = h("dialog", { "aria-labelledby": id, class: narrow ? "narrow" : "" }, h("div", { class: "dialog-inside" }, head, content));
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (opener?.isConnected) opener.focus();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Ask before something is written.
 *
 * @param {{title: string, content: (Node|string)[], verb: string, danger?: boolean, write: () => Promise<unknown>}} question
 *   `write` runs after the confirmation; its error is shown in the dialog.
 * @returns {Promise<unknown>} what `write` returned; undefined: it was not confirmed
 */
export function confirm({ title, content, verb, danger = false, write }) {
  return new Promise((resolve) => {
    let result;
    const trouble = h("div", {});
    const yes = button(verb, run, { kind: danger ? "danger" : "main" });
    const no = button("Cancel", () => dialog.close());
    const dialog = openDialog(title, [...content.map((each) => (each instanceof Node ? each : h("p", {}, each))), trouble, h("div", { class: "dialog-end" }, no, yes)], { narrow: true });
    dialog.addEventListener("close", () => resolve(result));
    no.focus();

    async function run() {
      yes.disabled = true;
      trouble.replaceChildren();
      try {
        result = await write();
        result ??= true;
        dialog.close();
      } catch (error) {
        trouble.replaceChildren(failedNotice(error));
        yes.disabled = false;
      }
    }
  });
}

let timer;

/** Say what was done; a screen reader reads it. */
export function say(message) {
  const toast = document.getElementById("toast");
  toast.textContent = message;
  clearTimeout(timer);
  timer = setTimeout(() => (toast.textContent = ""), 6000);
}
