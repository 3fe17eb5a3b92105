/** Compare: an image with another one, or with an identity of the gallery. */

import { indexes } from "./api.mjs";
import { button, fill, h, newId, text } from "./dom.mjs";
import { faceBoxes } from "./faces.mjs";
import { asQuery, imageInput, latestImage, onPaste } from "./image_input.mjs";
import { picture } from "./pictures.mjs";
import { failed, loading } from "./states.mjs";
import { cosine, counted, percent, wordsOf } from "./words.mjs";

const RATES = [0.001, 0.01, 0.1]; // false matches; a small gallery has too few pairs to promise the first
const NOT_PROMISED = new Set(["not_calibrated", "invalid_request"]);
const LEAST = -0.2; // left end of the ruler; cosines below it are drawn there
const SHOWN = 6; // images of an identity

/** @param {import("./main.mjs").Context} context */
export async function compareView({ index, parameters }) {
  const detail = await indexes.detail(index);
  const words = wordsOf(index);
  const chosen = [null, null];
  const shown = h("div", {});
  let threshold = null; // that of the calibration
  let asked = 0;
  const result = h("section", { "aria-label": "Result", "aria-live": "polite" });
  const inputs = ["First image", "Second image"].map((label, place) => ({
    ...imageInput({ label, onChoose: (query) => take(place, query), onClear: () => take(place, null) }),
    wants: () => chosen[place] === null && !(place && isIdentity()),
  }));
  onPaste(inputs);
  const identity = identityInput(detail, words, (name) => take(1, name && { kind: "identity", identity: name }));
  const second = h("div", { class: "stack tight" });
  const kind = choices("Compare with", { image: "An image", identity: `A known ${words.one}` }, parameters.identity ? "identity" : "image", showSecond);
  const fromItem = async (id) => id && { kind: "id", id, url: await indexes.findPicture(index, id, 640) };
  const fromSearch = parameters.image && latestImage() && { kind: "image", image: latestImage() };
  const [first, other] = await Promise.all([fromItem(parameters.first), fromItem(parameters.second)]);
  [first || fromSearch, other].forEach((query, place) => {
    if (!query) return;
    inputs[place].show(query);
    chosen[place] = query;
  });
  fill(second, isIdentity() ? identity.element : inputs[1].element);
  if (parameters.identity) {
    identity.show(parameters.identity);
    chosen[1] = { kind: "identity", identity: parameters.identity };
  }
  if (chosen.every(Boolean)) verify();
  else showHint();
  const about = h("p", {}, `Do both show the same ${words.one}? Decided by the model and threshold of `, text(detail.name), ".");
  const head = h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Compare"), about), kind.element);
  return [head, h("div", { class: "versus" }, inputs[0].element, second), result];

  function isIdentity() {
    return kind.value() === "identity";
  }

  /** Put an image's place or an identity's name at the second place; neither is chosen yet. */
  function showSecond() {
    inputs[1].clear();
    identity.show("");
    fill(second, isIdentity() ? identity.element : inputs[1].element);
    take(1, null);
  }

  function take(place, query) {
    chosen[place] = query;
    threshold = null;
    inputs[0].mark(null);
    identity.showImages([]);
    if (chosen.every(Boolean)) verify();
    else showHint();
  }

  function showHint() {
    asked += 1;
    const missing = isIdentity() ? [!chosen[0] && "choose an image", !chosen[1] && `name the ${words.one}`] : [chosen.some(Boolean) ? "choose one more image" : "choose two images"];
    const said = missing.filter(Boolean).join(" and ");
    fill(result, h("p", { class: "state" }, `${said[0].toUpperCase()}${said.slice(1)}.`));
  }

  async function verify() {
    if (threshold === null && detail.fpir === null) return byHand(`No threshold was calibrated. Do: dml calibrate ${detail.name}`);
    const number = (asked += 1);
    if (threshold === null && !result.querySelector(".measure")) fill(result, loading("the comparison", 1));
    const [probe, other] = chosen.map(asQuery);
    const request = { probe, other };
    if (detail.detects_faces && chosen[0].kind === "image") request.faces = "all";
    try {
      const answer = await (threshold !== null ? indexes.verify(index, { ...request, threshold }) : promised(request));
      const image = answer.faces ? await inputs[0].loadedImage() : null;
      if (number !== asked) return;
      const place = threshold !== null ? shown : result;
      fill(place, measure(answer, words));
      if (image) markFaces(image, answer, place);
      if (answer.identity !== null) showImages(probe, answer.identity, number);
    } catch (error) {
      if (number !== asked) return;
      if (threshold === null && NOT_PROMISED.has(error.problem?.code)) byHand(`${error.problem.must}. ${error.problem.do ?? ""}`);
      else fill(result, failed(error, verify));
    }
  }

  /** Each face of the first image has its own similarity; the most similar one is shown first. */
  function markFaces(image, answer, place) {
    const show = (at) => fill(place, measure({ ...answer, ...answer.faces[at] }, words));
    const best = answer.faces.findIndex((each) => each.similarity === answer.similarity);
    const faces = answer.faces.map(({ box, same, similarity }) => ({ box, known: same, name: `${same ? words.same : words.different}, ${cosine(similarity)}` }));
    inputs[0].mark(faceBoxes(image, faces, Math.max(best, 0), show));
  }

  /** The pictures of an identity, the most similar to the probe first. */
  async function showImages(probe, name, number) {
    const filter = { op: "compare", column: "label", operator: "=", value: name };
    const found = await indexes.search(index, { queries: [probe], k: SHOWN, filter }).catch(() => null); // items without labels, or a picture of no face
    if (found && number === asked) identity.showImages(found.results[0].answers.map((each) => picture(indexes.picture(index, each, 320), `${name}, ${each.id}`)));
  }

  /** By the lowest rate that the calibration can promise. */
  async function promised(request) {
    let refused;
    for (const fmr of RATES) {
      try {
        return await indexes.verify(index, { ...request, fmr });
      } catch (error) {
        if (error.problem?.code !== "invalid_request") throw error;
        refused ??= error;
      }
    }
    throw refused;
  }

  /** No threshold can be promised: whoever compares chooses one. */
  function byHand(why) {
    threshold = 0.5;
    const id = newId("threshold");
    const output = h("output", { for: id }, cosine(threshold));
    const range = h("input", { type: "range", id, min: 0, max: 1, step: 0.005, value: threshold, on: { input: () => {
      threshold = Number(range.value);
      output.textContent = cosine(threshold);
    }, change: verify } });
    fill(result, shown, h("div", { class: "card padded stack by-hand" }, h("label", { class: "label" }, h("span", { class: "row apart" }, "Threshold", output), range), h("p", { class: "small quiet" }, `Chosen by you: ${why}`)));
    verify();
  }
}

/** Where an identity is named, and its images are shown. */
function identityInput(detail, words, onName) {
  const labels = detail.columns.find((column) => column.name === "label")?.values ?? [];
  const list = h("datalist", { id: newId("identities") }, labels.map(({ value }) => h("option", { value })));
  const input = h("input", { class: "input", maxlength: 1000, required: true, list: list.id, autocomplete: "off", spellcheck: "false" });
  const images = h("div", { class: "chosen" });
  const submit = (event) => {
    event.preventDefault();
    onName(input.value.trim());
  };
  const element = h("form", { class: "card padded stack identity", on: { submit } }, h("label", { class: "label" }, `Name of the ${words.one}`, h("span", { class: "small quiet" }, "As it was labelled or enrolled; of its images the most similar counts."), input, list), h("div", { class: "dialog-end" }, button("Compare", () => {}, { kind: "main", type: "submit" })), images);
  return { element, show: (name) => (input.value = name), showImages: (pictures) => fill(images, pictures) };
}

/** Two or more choices beside each other, of which one holds. */
function choices(label, named, chosen, onChange) {
  let value = chosen;
  const group = newId("choice");
  const radios = Object.entries(named).map(([each, said]) => h("label", {}, h("input", { type: "radio", name: group, value: each, checked: each === chosen, on: { change: () => {
    value = each;
    onChange();
  } } }), said));
  return { element: h("div", { class: "choices", role: "radiogroup", "aria-label": label }, radios), value: () => value };
}

function measure({ same, similarity, threshold, fmr, identity, images }, words) {
  const place = (cosineValue) => String(Math.min(1, Math.max(0, (cosineValue - LEAST) / (1 - LEAST))));
  const rate = fmr === null ? "" : ` At this threshold ${percent(fmr)} of different pairs are taken for the same.`;
  const of = identity === null ? "Cosine similarity of the two embeddings." : ["Cosine similarity to the most similar of ", counted(images, "image"), " of ", text(identity), "."];
  return h(
    "div",
    { class: "card measure" },
    h("div", { class: "verdict" }, h("h2", {}, same ? words.same : words.different), h("span", { class: "quiet" }, `similarity ${cosine(similarity)}, threshold ${cosine(threshold)}`)),
    h("div", { class: "ruler", "aria-hidden": "true", style: { "--threshold": place(threshold) } }, h("span", { class: "mark", style: { "--at": place(similarity) } }), h("span", { class: "limit", style: { "--at": place(threshold) } }, `threshold ${cosine(threshold)}`)),
    h("p", { class: "quiet" }, of, rate),
  );
}
