/** Correct a label or remove an item of a dataset: each makes a new version, with who and when. */

import { datasets } from "./api.mjs";
import { confirm, openDialog, say } from "./dialogs.mjs";
import { button, h, newId, text } from "./dom.mjs";
import { picture } from "./pictures.mjs";
import { shown } from "./words.mjs";

const NEW_VERSION = "The dataset gets a new version; the former one stays as it is. The indexes follow at their next refresh.";

/** An item in a dialog. */
export function showDatasetItem(detail, item, again) {
  const facts = [["Label", item.label], ["Id", item.id], ["Split", item.split], ["Pixels", `${item.width} × ${item.height}`], ...Object.entries(item.attributes)];
  const leave = (action) => () => {
    dialog.close();
    action();
  };
  const dialog = openDialog("Item", [
    h("div", { class: "item-detail" }, picture(datasets.picture(detail.name, item.id, 640), `${item.label}, ${item.id}`), h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, h("bdi", {}, name)), h("dd", {}, h("bdi", {}, shown(value)))]))),
    h("div", { class: "dialog-end" }, button("Remove…", leave(() => removeItem(detail, item, again)), { kind: "danger" }), button("Correct label…", leave(() => correctLabel(detail, item, "", again)), { kind: "main" })),
  ]);
}

/**
 * Give an item another label, after a confirmation.
 *
 * @param {string} proposed label; empty: none
 */
export async function correctLabel(detail, item, proposed, again) {
  const labels = detail.columns.find((column) => column.name === "label")?.values ?? [];
  const list = h("datalist", { id: newId("labels") }, labels.map(({ value }) => h("option", { value })));
  const input = h("input", { class: "input", value: proposed, maxlength: 1000, list: list.id, autocomplete: "off", autofocus: true });
  const answer = await confirm({
    title: "Correct the label?",
    content: [h("p", {}, text(item.id), " is labelled ", h("strong", {}, text(item.label)), "."), h("label", { class: "label" }, "Right label", input, list), h("p", { class: "small quiet" }, NEW_VERSION)],
    verb: "Correct label",
    write() {
      const label = input.value.trim();
      if (!label || label === item.label) throw new Error("Write another label than the present one");
      return datasets.correct(detail.name, item.id, label);
    },
  });
  if (answer) {
    say(`Corrected. The dataset is now version ${answer.version}.`);
    again();
  }
}

/** Take an item out of a dataset, after a confirmation. */
export async function removeItem(detail, item, again) {
  const answer = await confirm({
    title: "Remove this item?",
    content: [h("p", {}, text(item.id), ", labelled ", h("strong", {}, text(item.label)), ", will not be in the next version."), h("p", { class: "small quiet" }, NEW_VERSION)],
    verb: "Remove item",
    danger: true,
    write: () => datasets.remove(detail.name, item.id),
  });
  if (answer) {
    say(`Removed. The dataset is now version ${answer.version}.`);
    again();
  }
}

/** Take a correction back, after a confirmation. */
export async function revoke(detail, { id, label, former_label: former }, again) {
  const answer = await confirm({
    title: "Take this correction back?",
    content: [label === null ? h("p", {}, text(id), " will be there again after the next ingest.") : h("p", {}, text(id), " will be labelled ", h("strong", {}, text(former)), " again."), h("p", { class: "small quiet" }, NEW_VERSION)],
    verb: "Take back",
    write: () => datasets.revoke(detail.name, id),
  });
  if (answer) {
    say(`Taken back. The dataset is now version ${answer.version}.`);
    again();
  }
}
