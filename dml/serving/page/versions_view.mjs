/** Versions: what each index was made from, and the models. */

import { lineage } from "./api.mjs";
import { h, text } from "./dom.mjs";
import { damageNotice, empty } from "./states.mjs";
import { count, percent, time } from "./words.mjs";

const KINDS = { dataset: "Dataset", vectors: "Imported vectors", run: "Training run", package: "Model", embeddings: "Embeddings", index: "Index" };

export async function versionsView() {
  const { indexes, damaged, models, models_missing: missing, pages } = await lineage();
  const links = pages.map(({ name, url }) => h("a", { class: "button", href: url, target: "_blank", rel: "noreferrer" }, name));
  const head = h("div", { class: "head" }, h("div", {}, h("h1", { tabindex: "-1" }, "Versions"), h("p", {}, "What every index was made from: dataset, training run, model, embeddings.")), h("div", { class: "row" }, links));
  if (!indexes.length && !models.length) return [head, damageNotice(damaged), empty("Nothing published yet", "Index a dataset: dml index NAME --model MODEL --dataset DATASET.", "layers")];
  return [
    head,
    damageNotice(damaged),
    h("section", { "aria-labelledby": "versions-indexes" }, h("h2", { id: "versions-indexes" }, "Indexes"), indexes.map(indexCard)),
    h("section", { "aria-labelledby": "versions-models" }, h("h2", { id: "versions-models" }, "Models"), models.length ? modelTable(models) : h("p", { class: "quiet" }, missing || "No model is registered.")),
  ];
}

function indexCard({ name, versions }) {
  const [current] = versions.filter((each) => each.current).concat(versions);
  const former = versions.filter((each) => each !== current);
  return h(
    "article",
    { class: "card index-card", "aria-label": `Index ${name}` },
    h("header", {}, h("h3", {}, text(name)), h("span", { class: "quiet" }, `${count(current.rows)} items, recall ${percent(current.recall)}, ${time(current.created)}`)),
    chain(current.lineage),
    former.length > 0 && h("details", { class: "padded" }, h("summary", {}, `${count(former.length)} former version${former.length > 1 ? "s" : ""}`), former.map((each) => h("div", {}, h("p", { class: "quiet" }, h("span", { class: "code" }, each.version), `, ${time(each.created)}`), chain(each.lineage)))),
  );
}

function chain(steps) {
  return h(
    "ol",
    { class: "lineage", "aria-label": "Made from" },
    steps.map((step) => h("li", { class: step.kind }, h("span", { class: "kind" }, KINDS[step.kind] ?? step.kind), h("span", { class: "name" }, step.url ? h("a", { href: step.url, target: "_blank", rel: "noreferrer" }, text(step.name)) : text(step.name)), step.what && h("span", { class: "small quiet" }, text(step.what)))),
  );
}

function modelTable(models) {
  const rows = models.map((model) => h("tr", {}, h("td", {}, model.url ? h("a", { href: model.url, target: "_blank", rel: "noreferrer" }, text(model.name)) : text(model.name), " ", model.champion && h("span", { class: "tag good" }, "champion")), h("td", { class: "nowrap" }, text(model.dataset || "—")), h("td", { class: "number" }, model.recall_at_1 === null ? "—" : percent(model.recall_at_1)), h("td", {}, text(model.reason || "—")), h("td", { class: "nowrap" }, model.created ? time(model.created) : "—")));
  return h("div", { class: "card table-scroll", tabindex: "0", role: "region", "aria-label": "Registered models" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), h("th", { scope: "col" }, "Trained on"), h("th", { scope: "col", class: "number" }, "Recall@1"), h("th", { scope: "col" }, "Gate"), h("th", { scope: "col" }, "Registered"))), h("tbody", {}, rows)));
}
