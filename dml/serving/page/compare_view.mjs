/** Compare: two images, the same identity or not. */

import { indexes } from "./api.mjs";
import { fill, h, newId, text } from "./dom.mjs";
import { asQuery, imageInput, latestImage, onPaste } from "./image_input.mjs";
import { failed, loading } from "./states.mjs";
import { cosine, percent, wordsOf } from "./words.mjs";

const RATES = [0.001, 0.01, 0.1]; // false matches; a small gallery has too few pairs to promise the first
const NOT_PROMISED = new Set([404, 409, 422]);
const LEAST = -0.2; // left end of the ruler; cosines below it are drawn there

/** @param {import("./main.mjs").Context} context */
export async function compareView({ index, parameters }) {
  const detail = await indexes.detail(index);
  const chosen = [null, null];
  const shown = h("div", {});
  let threshold = null; // that of the calibration
  const result = h("section", { "aria-label": "Result", "aria-live": "polite" });
  const inputs = ["First image", "Second image"].map((label, place) => ({
    ...imageInput({ label, onChoose: (query) => choose(place, query), onClear: () => choose(place, null) }),
    wants: () => chosen[place] === null,
  }));
  onPaste(inputs);
  const fromItem = (id) => id && { kind: "id", id, url: indexes.picture(index, id, 640) };
  const fromSearch = parameters.image && latestImage() && { kind: "image", image: latestImage() };
  [fromItem(parameters.first) || fromSearch, fromItem(parameters.second)].forEach((query, place) => {
    if (!query) return;
    inputs[place].show(query);
    chosen[place] = query;
  });
  if (chosen.every(Boolean)) verify();
  else showHint();
  const head = h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Compare"), h("p", {}, "Two images: do they show the same ", wordsOf(index).one, "? Decided by the model and threshold of ", text(detail.name), ".")));
  return [head, h("div", { class: "versus" }, inputs.map((each) => each.element)), result];

  function choose(place, query) {
    chosen[place] = query;
    threshold = null;
    if (chosen.every(Boolean)) verify();
    else showHint();
  }

  function showHint() {
    fill(result, h("p", { class: "state" }, chosen.some(Boolean) ? "One more image." : "Choose two images."));
  }

  async function verify() {
    if (!result.querySelector(".measure")) fill(result, loading("the comparison", 1));
    const [probe, other] = chosen.map(asQuery);
    try {
      if (threshold !== null) fill(shown, measure(await indexes.verify(index, { probe, other, threshold }), wordsOf(index)));
      else fill(result, measure(await promised(probe, other), wordsOf(index)));
    } catch (error) {
      if (threshold === null && NOT_PROMISED.has(error.status) && error.problem.code !== "unreadable_image") byHand(error);
      else fill(result, failed(error, verify));
    }
  }

  /** By the lowest rate that the calibration can promise. */
  async function promised(probe, other) {
    let refused;
    for (const fmr of RATES) {
      try {
        return await indexes.verify(index, { probe, other, fmr });
      } catch (error) {
        if (error.status !== 422) throw error;
        refused ??= error;
      }
    }
    throw refused;
  }

  /** No threshold was calibrated: whoever compares chooses one. */
  function byHand(error) {
    threshold = 0.5;
    const id = newId("threshold");
    const output = h("output", { for: id }, cosine(threshold));
    const range = h("input", { type: "range", id, min: 0, max: 1, step: 0.005, value: threshold, on: { input: () => {
      threshold = Number(range.value);
      output.textContent = cosine(threshold);
    }, change: verify } });
    fill(result, shown, h("div", { class: "card padded stack by-hand" }, h("label", { class: "label" }, h("span", { class: "row apart" }, "Threshold", output), range), h("p", { class: "small quiet" }, `Chosen by you: ${error.problem?.must ?? error.message}. ${error.problem?.do ?? ""}`)));
    verify();
  }
}

function measure({ same, similarity, threshold, fmr }, words) {
  const place = (cosineValue) => String(Math.min(1, Math.max(0, (cosineValue - LEAST) / (1 - LEAST))));
  const rate = fmr === null ? "" : ` At this threshold ${percent(fmr)} of different pairs are taken for the same.`;
  return h(
    "div",
    { class: "card measure" },
    h("div", { class: "verdict" }, h("h2", {}, same ? words.same : words.different), h("span", { class: "quiet" }, `similarity ${cosine(similarity)}, threshold ${cosine(threshold)}`)),
    h("div", { class: "ruler", "aria-hidden": "true", style: { "--threshold": place(threshold) } }, h("span", { class: "mark", style: { "--at": place(similarity) } }), h("span", { class: "limit", style: { "--at": place(threshold) } }, `threshold ${cosine(threshold)}`)),
    h("p", { class: "quiet" }, `Cosine similarity of the two embeddings.${rate}`),
  );
}
