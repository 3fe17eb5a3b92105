/** Gallery: enrol an identity, and forget one. */

import { indexes } from "./api.mjs";
import { confirm, say } from "./dialogs.mjs";
import { button, fill, h, text } from "./dom.mjs";
import { imageInput, onPaste } from "./image_input.mjs";
import { forget, forgetIdentity } from "./item_dialog.mjs";
import { picture } from "./pictures.mjs";
import { choice } from "./search_view.mjs";
import { failedNotice } from "./states.mjs";
import { counted, shown } from "./words.mjs";

const QUALITIES = { standard: "standard: size, sharpness, light", strict: "strict: also no look-alike", off: "off" };

/** @param {import("./main.mjs").Context} context */
export async function galleryView({ index, go }) {
  const detail = await indexes.detail(index);
  const size = h("p", {}, ...sizeOf(detail));
  const head = h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Gallery"), size));
  const refresh = async () => fill(size, ...sizeOf(await indexes.detail(index)));
  return [head, h("div", { class: "two" }, enrolment(index, detail, go, refresh), forgetting(index, refresh))];
}

function sizeOf(detail) {
  const since = [detail.enrolled && `${counted(detail.enrolled, "item")} enrolled since`, detail.forgotten && `${counted(detail.forgotten, "item")} forgotten since`];
  return [`${counted(detail.rows, "item")} in `, text(detail.name), ", version ", h("span", { class: "code" }, detail.version), ...since.filter(Boolean).map((each) => `, ${each}`), "."];
}

function enrolment(index, detail, go, refresh) {
  let images = [];
  let quality = "standard";
  const shownImages = h("div", { class: "chosen", role: "list", "aria-label": "Images to enrol" });
  const identity = h("input", { class: "input", required: true, maxlength: 1000, autocomplete: "off", on: { input: ready } });
  const outcome = h("div", { "aria-live": "polite" });
  const input = imageInput({ label: "Images to enrol", several: true, onChoose: ({ image }) => {
    images.push(image);
    draw();
  } });
  onPaste([input]);
  const fields = detail.columns.filter((column) => !["id", "label", "split"].includes(column.name)).map(attributeField);
  const submit = h("button", { type: "submit", class: "button main", disabled: true }, "Enrol…");
  const form = h(
    "form",
    { class: "card padded stack", "aria-labelledby": "enrol-title", on: { submit: enrol } },
    h("h2", { id: "enrol-title" }, "Enrol"),
    h("label", { class: "label" }, "Identity", h("span", { class: "small quiet" }, "A name or number. An existing one gets more images."), identity),
    detail.takes_images ? input.element : h("div", { class: "notice" }, "The model of this index is not in the store, so images cannot be enrolled here."),
    detail.detects_faces && h("p", { class: "small quiet" }, "Of several faces in an image the largest is enrolled."),
    shownImages,
    fields.length > 0 && h("details", {}, h("summary", {}, "Attributes"), h("div", { class: "stack attribute-fields" }, fields.map((each) => each.element))),
    choice("Quality gate", Object.entries(QUALITIES), quality, (value) => (quality = value)),
    outcome,
    h("div", { class: "dialog-end" }, submit),
  );
  return form;

  function ready() {
    submit.disabled = !identity.value.trim() || !images.length;
  }

  function draw() {
    fill(shownImages, images.map((image) => h("figure", { role: "listitem" }, h("img", { src: image.url, alt: image.name }), button("", () => {
      images = images.filter((each) => each !== image);
      draw();
    }, { kind: "square", iconName: "close", "aria-label": `Take ${image.name} away` }))));
    ready();
  }

  async function enrol(event) {
    event.preventDefault();
    if (submit.disabled) return;
    const name = identity.value.trim();
    const attributes = Object.fromEntries(fields.map((each) => each.entry()).filter(Boolean));
    const given = Object.keys(attributes).length;
    const answer = await confirm({
      title: "Enrol?",
      content: [h("p", {}, `${counted(images.length, "image")} of `, h("strong", {}, text(name)), given > 0 && ` with ${counted(given, "attribute")}`, " will be found by every search from now on."), "For images of people: make sure that they agreed."],
      verb: "Enrol",
      write: () => indexes.enrol(index, { identity: name, images: images.map(({ base64 }) => ({ base64 })), attributes, quality }),
    });
    if (!answer) return;
    fill(outcome, enrolled(index, answer, go, refresh));
    say(`Enrolled: ${counted(answer.ids.length, "image")} of ${name}.`);
    images = [];
    identity.value = "";
    draw();
    refresh();
  }
}

function enrolled(index, answer, go, refresh) {
  const undo = () => forgetIdentity(index, answer.identity, refresh);
  return h(
    "div",
    { class: "notice good stack" },
    h("p", {}, h("strong", {}, text(answer.identity)), ` is enrolled with ${counted(answer.ids.length, "image")}, revision ${answer.revision}.`),
    h("div", { class: "row" }, button("Search for it", () => go("search", { item: answer.ids[0] })), button("Forget it…", undo, { kind: "danger" })),
  );
}

function attributeField(column) {
  const label = h("bdi", {}, column.name);
  if (column.type === "boolean") {
    let value = "";
    const element = choice(column.name, [["", "no value"], ["true", "yes"], ["false", "no"]], "", (chosen) => (value = chosen));
    return { element, entry: () => value && [column.name, value === "true"] };
  }
  const isNumber = column.type === "integer" || column.type === "number";
  const list = h("datalist", { id: `values-of-${column.name}` }, isNumber ? [] : column.values.map(({ value }) => h("option", { value: shown(value) })));
  const input = h("input", { class: "input", type: isNumber ? "number" : "text", step: column.type === "integer" ? "1" : "any", list: isNumber ? null : list.id, autocomplete: "off" });
  return { element: h("label", { class: "label" }, label, input, list), entry: () => input.value !== "" && [column.name, isNumber ? Number(input.value) : input.value] };
}

function forgetting(index, refresh) {
  const outcome = h("div", { "aria-live": "polite" });
  const value = h("input", { class: "input", required: true, maxlength: 1000, autocomplete: "off" });
  let what = "identity";
  const radios = ["identity", "item"].map((each) => h("label", {}, h("input", { type: "radio", name: "what", value: each, checked: each === what, on: { change: () => (what = each) } }), each === "identity" ? "Identity" : "One item"));
  return h(
    "form",
    { class: "card padded stack", "aria-labelledby": "forget-title", on: { submit: run } },
    h("h2", { id: "forget-title" }, "Forget"),
    h("p", { class: "quiet" }, "At once out of every answer, and erased from what is kept within the operator's time."),
    h("div", { class: "choices", role: "radiogroup", "aria-label": "What to forget" }, radios),
    h("label", { class: "label" }, "Its name or id", value),
    outcome,
    h("div", { class: "dialog-end" }, h("button", { type: "submit", class: "button danger" }, "Forget…")),
  );

  async function run(event) {
    event.preventDefault();
    const name = value.value.trim();
    if (!name) return;
    const done = () => {
      value.value = "";
      fill(outcome, h("div", { class: "notice good" }, h("p", {}, h("strong", {}, text(name)), " is forgotten.")));
      refresh();
    };
    fill(outcome);
    if (what === "identity") return forgetIdentity(index, name, done);
    try {
      const item = await indexes.item(index, name);
      fill(outcome, h("div", { class: "row" }, h("div", { class: "chosen" }, picture(indexes.picture(index, { id: item.id, has_picture: item.picture !== null }, 320), `Item ${item.id}`))));
      await forget(index, item, done);
    } catch (error) {
      fill(outcome, failedNotice(error));
    }
  }
}
