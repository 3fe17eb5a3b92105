/** The page: which view the address names, the index in use, the key, the colours. */

import { indexes, key, setKey } from "./api.mjs";
import { compareView } from "./compare_view.mjs";
import { dataView } from "./data_view.mjs";
import { openDialog } from "./dialogs.mjs";
import { button, fill, h } from "./dom.mjs";
import { galleryView } from "./gallery_view.mjs";
import { searchView } from "./search_view.mjs";
import { empty, failed, loading, notThere } from "./states.mjs";
import { startTheme } from "./theme.mjs";
import { versionsView } from "./versions_view.mjs";

/**
 * @typedef {{index: string, parameters: Object<string, string>,
 *   go: (view: string, parameters?: Object<string, string>, options?: {anew?: boolean}) => void}} Context
 */

const VIEWS = {
  search: { view: searchView, title: "Search", ofIndex: true },
  compare: { view: compareView, title: "Compare", ofIndex: true },
  gallery: { view: galleryView, title: "Gallery", ofIndex: true },
  data: { view: dataView, title: "Data" },
  versions: { view: versionsView, title: "Versions" },
};

const main = document.querySelector("main");
const select = document.getElementById("index");
const tabs = [...document.querySelectorAll(".tabs a")];
let known = null;
let shownLast = 0;

startTheme(document.getElementById("theme"));
document.getElementById("key").addEventListener("click", askForKey);
select.addEventListener("change", () => go(address().name, { index: select.value }));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});
addEventListener("hashchange", show);
show();

/** The view and parameters that the address names. */
function address() {
  const [name, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: VIEWS[name] ? name : "search", parameters: Object.fromEntries(new URLSearchParams(query)) };
}

function go(name, parameters = {}, { anew = false } = {}) {
  const kept = VIEWS[name].ofIndex ? { index: select.value, ...parameters } : parameters;
  const query = new URLSearchParams(Object.entries(kept).filter(([, value]) => value)).toString();
  const hash = `#/${name}${query && "?"}${query}`;
  if (location.hash !== hash) location.hash = hash;
  else if (anew) show();
}

async function show() {
  const number = (shownLast += 1);
  const { name, parameters } = address();
  const { view, title, ofIndex } = VIEWS[name];
  document.title = `${title} · dml`;
  for (const tab of tabs) tab.toggleAttribute("aria-current", false);
  tabs.find((tab) => tab.dataset.view === name).setAttribute("aria-current", "page");
  document.getElementById("index-choice").hidden = !ofIndex;
  delete main.dataset.shown;
  fill(main, loading(title.toLowerCase()));
  let content;
  try {
    if (ofIndex) await chooseIndex(parameters.index);
    content = ofIndex && !select.value ? [headed(title), noIndex()] : await view({ index: select.value, parameters, go });
  } catch (error) {
    content = [headed(title), failed(error, show), error.status === 401 && h("div", { class: "state" }, button("Enter a key", askForKey, { kind: "main" }))];
    known = null;
  }
  if (number !== shownLast) return; // another view was asked for meanwhile
  fill(main, content);
  main.dataset.shown = location.hash; // for programs that wait for it
  if (number > 1) (main.querySelector("h1") ?? main).focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Read which indexes there are, and choose the one that the address names; where it names none, the first. */
async function chooseIndex(wanted) {
  if (wanted && !known?.includes(wanted)) known = null; // it may have been published since
  known ??= (await indexes.list()).indexes.map((each) => each.name);
  const isThere = !wanted || !known.length || known.includes(wanted);
  const chosen = isThere ? ([wanted, select.value].find((each) => known.includes(each)) ?? known[0] ?? "") : "";
  fill(select, known.map((each) => h("option", { value: each }, each)));
  select.value = chosen;
  for (const tab of tabs) {
    if (VIEWS[tab.dataset.view].ofIndex && chosen) tab.href = `#/${tab.dataset.view}?${new URLSearchParams({ index: chosen })}`;
  }
  if (!isThere) throw notThere("index", wanted);
}

function headed(title) {
  return h("div", { class: "head" }, h("h1", { tabindex: "-1" }, title));
}

function noIndex() {
  return empty("No index yet", "Index a dataset and come back: dml index NAME --model MODEL --dataset DATASET.", "layers");
}

function askForKey() {
  const input = h("input", { class: "input", type: "password", value: key(), autocomplete: "off", autofocus: true });
  const form = h("form", { class: "stack", on: { submit: (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    known = null;
    dialog.close();
    show();
  } } }, h("label", { class: "label" }, "Key", h("span", { class: "small quiet" }, "Kept in this tab until you close it. None is needed on the service's own machine, unless its operator asks for one."), input), h("div", { class: "dialog-end" }, h("button", { type: "submit", class: "button main" }, "Use this key")));
  const dialog = openDialog("Key of the service", [form], { narrow: true });
}
