/** Data: a dataset as a grid, and what is wrong in it, with corrections. */

import { datasets } from "./api.mjs";
import { correctLabel, removeItem, revoke, showDatasetItem } from "./corrections.mjs";
import { button, fill, fold, h, text } from "./dom.mjs";
import { filterForm } from "./filters.mjs";
import { picture } from "./pictures.mjs";
import { choice } from "./search_view.mjs";
import { damageNotice, empty, failed, loading, notThere } from "./states.mjs";
import { cosine, count, counted, summary, time } from "./words.mjs";

const PARTS = { items: "Items", suspects: "Suspected labels", duplicates: "Near-duplicates", quarantine: "Quarantine", corrections: "Corrections" };
const PER_PAGE = 60;
const SIDE = 224;
const ASKED_AGAIN_MS = 2_000;

/** @param {import("./main.mjs").Context} context */
export async function dataView({ parameters, go }) {
  const { datasets: known, damaged } = await datasets.list();
  const title = h("h1", { tabindex: "-1" }, "Data");
  if (!known.length) return [h("div", { class: "head" }, title), damageNotice(damaged), empty("No dataset yet", "Make one: dml ingest SOURCE --name NAME.", "grid")];
  const name = parameters.dataset || known[0].name;
  const isThere = known.some((each) => each.name === name);
  const part = PARTS[parameters.part] ? parameters.part : "items";
  const names = known.map((each) => [each.name, each.name]);
  const select = choice("Dataset", isThere ? names : [["", "choose one"], ...names], isThere ? name : "", (chosen) => go("data", { dataset: chosen, part }));
  if (!isThere) return [h("div", { class: "head" }, title, h("div", { class: "head-select" }, select)), damageNotice(damaged), failed(notThere("dataset", name))];
  const detail = await datasets.detail(name);
  const head = h(
    "div",
    { class: "head" },
    h("div", {}, title, h("p", {}, `${counted(detail.rows, "image")} of ${counted(detail.classes, "label")}, version `, h("span", { class: "code" }, detail.version), ".")),
    h("div", { class: "head-select" }, select),
  );
  const tabs = h("nav", { class: "views", "aria-label": "Parts of the dataset" }, Object.entries(PARTS).map(([each, label]) => h("a", { href: `#/data?${new URLSearchParams({ dataset: name, part: each })}`, "aria-current": each === part ? "page" : null }, label, each === "quarantine" && detail.quarantined > 0 && ` (${count(detail.quarantined)})`)));
  requestAnimationFrame(() => tabs.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" })); // a narrow screen cuts them off
  const again = () => go("data", { dataset: name, part }, { anew: true });
  return [head, damageNotice(damaged), tabs, await VIEWS[part](detail, again)];
}

const VIEWS = { items: itemsPart, suspects: suspectsPart, duplicates: duplicatesPart, quarantine: quarantinePart, corrections: correctionsPart };

/** The grid: filters, and one page of items at a time. */
function itemsPart(detail, again) {
  const name = detail.name;
  const results = h("section", { "aria-label": "Items", "aria-live": "polite" });
  const state = { conditions: [], first: 0, running: null };
  const form = filterForm(detail.columns, (conditions) => {
    Object.assign(state, { conditions, first: 0 });
    show();
  });
  show();
  return h("div", { class: "columns" }, fold("Filters", form.element), results);

  async function show() {
    state.running?.abort();
    state.running = new AbortController();
    if (!results.firstChild) fill(results, loading("items", 24));
    const request = { first: state.first, most: PER_PAGE };
    if (state.conditions.length) request.filter = state.conditions;
    try {
      const page = await datasets.items(name, request, state.running.signal);
      if (!page.total) return fill(results, empty("No item matches", "Take a filter away.", "grid"));
      const cards = page.items.map((item) => card(detail, item, again));
      fill(results, h("p", { class: "quiet row" }, counted(page.total, "item")), h("ol", { class: "items" }, cards), pages(state.first, page.total, turn));
    } catch (error) {
      if (error.name !== "AbortError") fill(results, failed(error, show));
    }
  }

  function turn(next) {
    state.first = next;
    show().then(() => document.querySelector("h1").scrollIntoView({ block: "center" }));
  }
}

function card(detail, item, again) {
  const open = () => showDatasetItem(detail, item, again);
  const known = [item.split, summary(item.attributes)].filter(Boolean).join(" · ");
  return h("li", { class: "answer" }, picture(datasets.picture(detail.name, item.id, SIDE), `${item.label}, ${item.id}`, "button", { on: { click: open } }), h("div", { class: "caption" }, text(item.label, { class: "who" }), h("bdi", { class: "what", title: known }, known)));
}

/** A list that the service computes, page by page. */
async function computed(ask, what, draw, nothing) {
  const results = h("section", { "aria-label": what, "aria-live": "polite" }, loading(what));
  const shownSoFar = h("div", { class: "pairs" });
  let first = 0;
  more();
  return results;

  async function more() {
    try {
      const page = await ask({ first, most: PER_PAGE });
      if (!page.total) return fill(results, nothing);
      shownSoFar.append(...draw(page));
      first += PER_PAGE;
      fill(results, h("p", { class: "quiet row" }, page.note), shownSoFar, first < page.total && h("div", { class: "pages" }, button(`More of ${count(page.total)}`, more)));
    } catch (error) {
      if (error.problem?.code === "computing" && results.isConnected) return setTimeout(more, ASKED_AGAIN_MS);
      fill(results, failed(error, more));
    }
  }
}

function suspectsPart(detail, again) {
  const draw = ({ suspects }) => suspects.map(({ id, label, split, agreed, neighbors, similarity }) => {
    const item = { id, label };
    return h(
      "article",
      { class: "card pair" },
      picture(datasets.picture(detail.name, id, SIDE), `${label}, ${id}`),
      h("dl", { class: "stack tight" }, h("div", {}, h("dt", { class: "small quiet" }, "Labelled"), h("dd", {}, text(label))), h("div", {}, h("dt", { class: "small quiet" }, `${counted(neighbors, "neighbour")} say`), h("dd", {}, h("strong", {}, text(agreed)))), h("div", {}, h("dt", { class: "small quiet" }, "Their similarity"), h("dd", {}, cosine(similarity))), h("div", {}, h("dt", { class: "small quiet" }, split), h("dd", { class: "small" }, text(id)))),
      h("div", { class: "row whole" }, button("Correct…", () => correctLabel(detail, item, agreed, again)), button("Remove…", () => removeItem(detail, item, again), { kind: "danger" })),
    );
  });
  const ask = async (page) => {
    const answer = await datasets.suspects(detail.name, page);
    return { ...answer, note: `${counted(answer.total, "item")} whose nearest neighbours all have another label, as ${answer.embedder} sees them.` };
  };
  return computed(ask, "suspected labels", draw, empty("No suspected label", "No item's nearest neighbours agree on another label than its own.", "check"));
}

function duplicatesPart(detail, again) {
  const drawn = new Set();
  const isNew = ({ pair: { first, second } }) => !drawn.has(JSON.stringify([second, first])) && drawn.add(JSON.stringify([first, second])); // each image names its own
  const draw = ({ pairs }) => pairs.filter(isNew).map(({ between, pair }) =>
    h(
      "article",
      { class: "card pair" },
      side(detail, pair.first, pair.first_label, again),
      side(detail, pair.second, pair.second_label, again),
      h("p", { class: "small quiet whole" }, `${between}, alike by ${cosine(pair.similarity)}${pair.first_label === pair.second_label ? "" : ", with two labels"}`),
    ),
  );
  const ask = async (page) => {
    const answer = await datasets.nearDuplicates(detail.name, page);
    return { ...answer, note: `${counted(answer.total, "image")} with a near-duplicate. Between test and train they make an evaluation look better than it is.` };
  };
  return computed(ask, "near-duplicates", draw, empty("No near-duplicates", "No two images of the dataset are nearly the same.", "check"));
}

function side(detail, id, label, again) {
  const item = { id, label };
  return h("div", { class: "caption" }, picture(datasets.picture(detail.name, id, SIDE), `${label}, ${id}`), text(label, { class: "who" }), text(id, { class: "what" }), h("div", { class: "row" }, button("Correct…", () => correctLabel(detail, item, "", again), { kind: "bare" }), button("Remove…", () => removeItem(detail, item, again), { kind: "bare danger" })));
}

function quarantinePart(detail) {
  const ask = (page) => datasets.quarantine(detail.name, page);
  const columns = ["Reason", "Entry", "Label", "What is wrong"];
  const row = (each) => [text(each.reason), text(each.id || each.locator || "—"), text(each.label ?? "—"), text(each.detail ?? "")];
  const above = ({ reasons }) => h("div", { class: "row" }, reasons.map((each) => h("span", { class: "tag" }, `${each.reason} ${count(each.rows)}`)));
  return table(ask, "Quarantine", columns, (page) => page.problems.map(row), empty("Nothing in quarantine", "Every entry of the source became an item.", "check"), above);
}

function correctionsPart(detail, again) {
  const ask = (page) => datasets.corrections(detail.name, page);
  const columns = ["Item", "Was", "Is", "By", "When", ""];
  const row = (each) => [text(each.id), text(each.former_label), each.label === null ? "removed" : text(each.label), text(each.who), time(each.when), button("Take back…", () => revoke(detail, each, again), { kind: "bare" })];
  return table(ask, "Corrections", columns, (page) => page.corrections.map(row), empty("No corrections", "Correct a label or remove an item in the other parts; it is listed here, and later ingests keep it.", "check"));
}

/** A table that the service sends page by page. */
async function table(ask, what, columns, rowsOf, nothing, above = () => null) {
  const results = h("section", { "aria-label": what }, loading(what.toLowerCase()));
  let first = 0;
  show();
  return results;

  async function show() {
    try {
      const page = await ask({ first, most: PER_PAGE });
      if (!page.total) return fill(results, nothing);
      const head = h("tr", {}, columns.map((each) => (each ? h("th", { scope: "col" }, each) : h("td", {}))));
      const rows = rowsOf(page).map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell))));
      fill(results, above(page), h("div", { class: "card table-scroll", tabindex: "0", role: "region", "aria-label": `${what}, as a table` }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))), pages(first, page.total, turn));
    } catch (error) {
      fill(results, failed(error, show));
    }
  }

  function turn(next) {
    first = next;
    show();
  }
}

/** Former and next; nothing where one page holds all. */
function pages(first, total, turn) {
  if (total <= PER_PAGE) return null;
  const last = Math.min(total, first + PER_PAGE);
  return h(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    button("Former", () => turn(first - PER_PAGE), { disabled: first === 0 }),
    h("span", {}, `${count(first + 1)}–${count(last)} of ${count(total)}`),
    button("Next", () => turn(first + PER_PAGE), { disabled: last >= total }),
  );
}
