/** How a search was executed and why, in a panel that opens. */

import { fill, h } from "./dom.mjs";
import { failedNotice } from "./states.mjs";
import { count, milliseconds, percent } from "./words.mjs";

const KINDS = {
  nothing: "No item matches the filter",
  exact: "Compared with every match",
  index_filtered: "The nearest lists of the index, without what does not match",
  index: "The index as it was built",
  cascade: "Small codes first, then the best of them in full",
};
const BASES = { exact: "every item was compared", calibrated: "measured on held-out queries like the items", built: "measured on queries like the items when the index was built" };

/**
 * @typedef {{plan: string, execution: object|null, milliseconds: {decode: number, encode: number, search: number},
 *   index: string, model: string, revision: number}} Response of a search
 */

/**
 * @param {Response} response
 * @param {() => Promise<Response>} explain the same search with its plan, asked for when the panel opens
 */
export function planPanel(response, explain) {
  const { decode, encode, search } = response.milliseconds;
  const inside = h("div", { class: "plan-inside" });
  const panel = h("details", { class: "plan card" }, h("summary", {}, "How this was searched ", h("span", { class: "quiet" }, milliseconds(decode + encode + search))), inside);
  panel.addEventListener("toggle", async () => {
    if (!panel.open || inside.firstChild) return;
    if (response.execution) return draw(response);
    try {
      draw({ ...response, execution: (await explain()).execution });
    } catch (error) {
      fill(inside, failedNotice(error));
    }
  });
  return panel;

  function draw(explained) {
    fill(inside, h("ol", { class: "stages" }, stagesOf(explained.milliseconds, explained.execution)), explained.execution ? facts(explained, explained.execution) : h("p", {}, explained.plan));
  }
}

function stagesOf(times, execution) {
  const stages = [stage("Decode", milliseconds(times.decode), "the image's pixels"), stage("Encode", milliseconds(times.encode), "pixels to a vector")];
  const inner = execution?.stages ?? [];
  if (!inner.length) return [...stages, stage("Search", milliseconds(times.search), execution ? KINDS[execution.kind] : "the nearest vectors")];
  return [
    ...stages,
    ...inner.map((each) => stage(each.name, milliseconds(each.cpu_us / 1000), `${count(each.budget)} rows at most${each.recall === null ? "" : `, recall ${percent(each.recall)}`}`)),
  ];
}

function stage(name, time, what) {
  return h("li", { class: "stage" }, h("b", {}, name), h("span", {}, time), h("div", { class: "small quiet" }, what));
}

function facts(response, execution) {
  const recall = execution.recall;
  const interval = recall.low === null ? "" : ` [${percent(recall.low)}, ${percent(recall.high)}]`;
  const pairs = [
    ["Way", KINDS[execution.kind]],
    ["Why", execution.reason],
    ["Items", `${count(execution.count)} of ${count(execution.rows)}${execution.filtered ? " match the filter" : ""}`],
    ["Recall", `${percent(recall.value)}${interval}, ${BASES[recall.basis]}`],
    ["Index", `${response.index}, ${execution.factory}`],
    ["Model", response.model || "not registered"],
    ["Revision", `${response.revision}`],
    ["Expected", costs(execution)],
    ["Notes", execution.notes.join("; ")],
  ];
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function costs({ scan_us: scan, index_us: index }) {
  const known = [scan === null ? "" : `comparing every match ${milliseconds(scan / 1000)}`, index === null ? "" : `the index ${milliseconds(index / 1000)}`];
  return known.filter(Boolean).join(", ");
}
