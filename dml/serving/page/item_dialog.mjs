/** One item of a gallery in a dialog: its picture, its attributes, and what can be done with it. */

import { indexes } from "./api.mjs";
import { confirm, openDialog, say } from "./dialogs.mjs";
import { button, fill, h, text } from "./dom.mjs";
import { picture } from "./pictures.mjs";
import { failed, loading } from "./states.mjs";
import { counted, shown } from "./words.mjs";

/**
 * @param {string} index its name
 * @param {string} id of the item
 * @param {{search: (id: string) => void, compare: (id: string) => void, forgotten: () => void}} actions
 */
export async function showItem(index, id, actions) {
  const content = h("div", { class: "stack" }, loading("the item", 1));
  const dialog = openDialog("Item", [content]);
  try {
    const item = await indexes.item(index, id);
    fill(content, detail(index, item, dialog, actions));
  } catch (error) {
    fill(content, failed(error));
  }
}

function detail(index, item, dialog, actions) {
  const leave = (action) => () => {
    dialog.close();
    action(item.id);
  };
  const facts = [["Identity", item.label], ["Id", item.id], ...Object.entries(item.attributes)];
  return [
    h(
      "div",
      { class: "item-detail" },
      picture(indexes.picture(index, { id: item.id, has_picture: item.picture !== null }, 640), `Item ${item.id}`),
      h(
        "div",
        { class: "stack" },
        h("div", { class: "row" }, h("span", { class: "tag" }, item.enrolled ? "enrolled since the index was built" : "in the index")),
        h("dl", { class: "facts" }, facts.filter(([, value]) => value !== null).map(([name, value]) => [h("dt", {}, h("bdi", {}, name)), h("dd", {}, h("bdi", {}, shown(value)))])),
      ),
    ),
    h(
      "div",
      { class: "dialog-end" },
      button("Forget…", () => {
        dialog.close();
        forget(index, item, actions.forgotten);
      }, { kind: "danger" }),
      button("Compare", leave(actions.compare)),
      button("Search from this", leave(actions.search), { kind: "main" }),
    ),
  ];
}

/** Forget an item, after a confirmation. */
export async function forget(index, item, done) {
  const answer = await confirm({
    title: "Forget this item?",
    content: [h("p", {}, "The item ", h("strong", {}, text(item.id)), item.label && [" of ", text(item.label)], " will be in no answer from now on."), "Its vector and picture are erased from everything that is kept within the time that the operator has set."],
    verb: "Forget item",
    danger: true,
    write: () => indexes.forgetItem(index, item.id),
  });
  if (answer) {
    say(`Forgotten: ${counted(answer.ids.length, "item")}.`);
    done();
  }
}

/** Forget everything of an identity, after a confirmation. */
export async function forgetIdentity(index, identity, done) {
  const answer = await confirm({
    title: "Forget this identity?",
    content: [h("p", {}, "All images of ", h("strong", {}, text(identity)), " will be in no answer from now on."), "Vectors and pictures are erased from everything that is kept within the time that the operator has set."],
    verb: "Forget identity",
    danger: true,
    write: () => indexes.forgetIdentity(index, identity),
  });
  if (answer) {
    say(`Forgotten: ${counted(answer.ids.length, "item")} of ${identity}.`);
    done();
  }
}
