/** Search: an image in, the most similar identities or items out. */

import { answerList, answersOf } from "./answers.mjs";
import { indexes } from "./api.mjs";
import { fill, fold, h, newId, text } from "./dom.mjs";
import { choose, faceBoxes, faceRow } from "./faces.mjs";
import { filterForm } from "./filters.mjs";
import { asQuery, imageInput, onPaste } from "./image_input.mjs";
import { showItem } from "./item_dialog.mjs";
import { planPanel } from "./plan.mjs";
import { empty, failed, loading } from "./states.mjs";
import { cosine, counted, count, kindOf, kinds, setKind, wordsOf } from "./words.mjs";

const GROUPINGS = { best: "identity, best image", mean: "identity, mean of its images", all: "identity, all images", "": "no grouping" };
const ANSWERS = [12, 24, 48, 96];

/** @param {import("./main.mjs").Context} context */
export async function searchView({ index, parameters, go }) {
  const detail = await indexes.detail(index);
  const state = { query: null, conditions: [], grouping: "best", k: ANSWERS[0], threshold: null, response: null, running: null, face: 0 };
  const results = h("section", { "aria-label": "Answers", "aria-busy": "false" });
  const input = imageInput({ label: "Image to search with", onChoose: (query) => begin(query), onClear: () => begin(null) });
  const form = filterForm(detail.columns, (conditions) => {
    state.conditions = conditions;
    search();
  });
  onPaste([input]);
  const side = h("div", { class: "side" }, detail.takes_images ? input.element : noImages(detail), fold("Options and filters", options(), form.element));
  const head = h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Search"), h("p", {}, `${counted(detail.rows + detail.enrolled - detail.forgotten, "item")} in `, text(detail.name), ", version ", h("span", { class: "code" }, detail.version))));
  showNothing();
  if (parameters.item) begin({ kind: "id", id: parameters.item, url: await indexes.findPicture(index, parameters.item, 640) });
  return [head, h("div", { class: "columns" }, side, results)];

  function options() {
    const grouping = choice("Answers by", Object.entries(GROUPINGS), state.grouping, (value) => {
      state.grouping = value;
      search();
    });
    const number = choice("How many", ANSWERS.map((each) => [each, String(each)]), state.k, (value) => {
      state.k = Number(value);
      search();
    });
    const kind = choice("The gallery holds", kinds.map((each) => [each, each]), kindOf(index), (value) => {
      setKind(index, value);
      if (state.response) input.loadedImage().then((picture) => show(state.response.faces ? picture : null));
    });
    return h("div", { class: "card padded stack" }, grouping, h("div", { class: "range two-fields" }, number, h("span", {}), kind));
  }

  function begin(query) {
    state.query = query;
    state.threshold = null;
    state.face = 0;
    if (query) {
      input.show(query);
      search();
    } else {
      state.running?.abort();
      showNothing();
    }
  }

  async function search() {
    if (!state.query) return;
    state.running?.abort();
    const running = (state.running = new AbortController());
    results.setAttribute("aria-busy", "true");
    if (!state.response) fill(results, loading("answers"));
    try {
      state.response = await indexes.search(index, request(state.grouping), running.signal);
      const picture = state.response.faces ? await input.loadedImage() : null;
      if (running.signal.aborted) return;
      show(picture);
    } catch (error) {
      if (error.name === "AbortError") return;
      state.response = null;
      input.mark(null);
      fill(results, failed(error, search));
    }
    results.setAttribute("aria-busy", "false");
  }

  /** @param {string} grouping empty: none, and then the plan is explained, which the service does of items alone */
  function request(grouping) {
    const wanted = { queries: [asQuery(state.query)], k: state.k };
    if (state.conditions.length) wanted.filter = state.conditions;
    if (detail.detects_faces && state.query.kind === "image") wanted.faces = "all";
    return grouping ? { ...wanted, group_by_identity: grouping } : { ...wanted, explain: true };
  }

  function plan(response) {
    return planPanel(response, () => indexes.search(index, request("")));
  }

  /** @param {HTMLImageElement|null} picture whose faces have answers; null: the query has */
  function show(picture) {
    const { response } = state;
    const words = wordsOf(index);
    const found = response.faces?.[0] ?? response.results;
    if (!found.length) {
      input.mark(null);
      fill(results, empty("No face in this picture", "The model compares faces. Take a picture in which a face is larger, sharper or turned to the camera.", "person"), plan(response));
      return;
    }
    const ofEach = found.map(answersOf);
    if (!ofEach[0].length) {
      input.mark(null);
      fill(results, empty("No item matches", "Take a filter away: nothing in the gallery satisfies all of them."), plan(response));
      return;
    }
    state.face = Math.min(state.face, found.length - 1);
    const list = h("div", {});
    const row = h("div", {});
    const verdict = h("div", { class: "verdict", role: "status" });
    let boxes = null;
    let arrange;
    fill(results, row, h("div", { class: "toolbar" }, verdict, slider()), list, plan(response));
    drawFaces();
    take(state.face);

    function threshold() {
      return state.threshold === null ? response.threshold : { similarity: state.threshold, fpir: null };
    }

    /** Who each face is, at the present threshold. */
    function drawFaces() {
      if (!picture) return;
      const limit = threshold()?.similarity;
      const faces = found.map(({ box }, place) => {
        const [best] = ofEach[place];
        const known = limit === undefined || best.similarity >= limit;
        return { box, known, name: known ? best.title : words.nobody, detail: cosine(best.similarity) };
      });
      boxes = faceBoxes(picture, faces, state.face, take);
      input.mark(boxes);
      if (faces.length > 1) fill(row, faceRow(picture, faces, state.face, take));
    }

    /** Show the answers of a face, or of the query. */
    function take(place) {
      state.face = place;
      choose(place, boxes, row);
      const actions = { search: searchFrom, details: (answer) => showItem(index, answer.id, { search: searchFrom, compare, forgotten: search }) };
      arrange = answerList(index, ofEach[place], actions);
      draw();
    }

    function draw() {
      fill(verdict, verdictOf(ofEach[state.face], threshold(), words));
      fill(list, arrange(threshold(), words));
    }

    function slider() {
      const id = newId("threshold");
      const begins = state.threshold ?? response.threshold?.similarity ?? 0.5;
      const output = h("output", { for: id }, response.threshold || state.threshold !== null ? cosine(begins) : "none");
      const range = h("input", { type: "range", id, min: 0, max: 1, step: 0.005, value: begins, on: { input: () => {
        state.threshold = Number(range.value);
        output.textContent = cosine(state.threshold);
        drawFaces();
        draw();
      } } });
      const note = !response.threshold && h("span", { class: "small quiet" }, `None is promised: ${response.no_threshold.replace(/[.]$/, "")}. Move it to try one.`);
      return h("div", { class: "threshold" }, h("label", { class: "label", for: id }, "Threshold", output), range, note);
    }
  }

  function searchFrom(id) {
    go("search", { item: id });
  }

  function compare(id) {
    go("compare", { ...(state.query?.kind === "id" ? { first: state.query.id } : { image: "latest" }), second: id });
  }

  function showNothing() {
    state.response = null;
    input.mark(null);
    fill(results, !detail.takes_images ? empty("Which items are similar?", "The items that are most similar to one of the gallery appear here, once you search from it.", "search") : empty("Who or what is it?", "Drop, paste, choose or photograph an image. The most similar items of the gallery appear here, and a line shows from where on they are the same.", "image"));
  }
}

function verdictOf(answers, threshold, words) {
  const best = answers[0];
  if (!threshold) return [h("h2", {}, text(best.title)), h("span", { class: "quiet" }, `the most similar of ${count(answers.length)}, ${cosine(best.similarity)}`)];
  if (best.similarity >= threshold.similarity) return [h("h2", {}, text(best.title)), h("span", { class: "quiet" }, `${cosine(best.similarity)}, above the threshold ${cosine(threshold.similarity)}`)];
  return [h("h2", {}, words.nobody), h("span", { class: "quiet" }, "The nearest is ", text(best.title), ` at ${cosine(best.similarity)}, below the threshold ${cosine(threshold.similarity)}`)];
}

function noImages(detail) {
  return h("div", { class: "notice" }, h("p", {}, "The model of ", text(detail.name), " is not in the store. Search from an item: open its link, or browse the dataset."));
}

/** A labelled select. */
export function choice(label, pairs, chosen, onChange) {
  const select = h("select", { class: "input", on: { change: () => onChange(select.value) } }, pairs.map(([value, shown]) => h("option", { value, selected: String(value) === String(chosen) }, shown)));
  return h("label", { class: "label" }, h("span", { class: "small quiet" }, label), select);
}
