/** What a view shows while it has nothing to show: empty, loading, error. */

import { ServiceError } from "./api.mjs";
import { button, h, icon } from "./dom.mjs";

/** Nothing there yet, and what to do about it. */
export function empty(title, advice, iconName = "search") {
  return h("div", { class: "state" }, icon(iconName), h("h2", {}, title), h("p", {}, advice));
}

/** Grey shapes where pictures will be. */
export function loading(what, count = 12) {
  const bones = Array.from({ length: count }, () => h("div", { class: "bone" }));
  return h("div", { role: "status", "aria-label": `Loading ${what}` }, h("div", { class: "bones", "aria-hidden": "true" }, bones));
}

/** What is wrong, and what to do. */
export function failed(error, again) {
  const { must, got, do: advice, request_id: request } = problemOf(error);
  return h(
    "div",
    { class: "state", role: "alert" },
    icon("alert"),
    h("h2", {}, titleOf(error)),
    h("p", {}, sentence(must, got)),
    advice && h("p", {}, advice),
    request && h("p", { class: "small" }, "Request ", h("span", { class: "code" }, request)),
    again && button("Try again", again, { kind: "main" }),
  );
}

/** The error of an address that names what is not there: another in its place would be taken for it. @param {"index" | "dataset"} what */
export function notThere(what, name) {
  const advice = `Choose another ${what} above; or use a key that may read this one.`;
  return new ServiceError({ code: "not_found", must: `The ${what} that the address names must be there`, got: `“${name}” is not`, do: advice }, 404);
}

/** What is wrong and what to do, in one line within a form. */
export function failedNotice(error) {
  const { must, got, do: advice } = problemOf(error);
  return h("div", { class: "notice error", role: "alert" }, h("p", {}, h("strong", {}, titleOf(error)), " ", sentence(must, got), advice && ` ${advice}`));
}

/** What the service could not read, where it could read the rest. @param {string[]} damaged */
export function damageNotice(damaged) {
  return damaged.length > 0 && h("div", { class: "notice error damage", role: "alert" }, h("div", { class: "stack tight" }, damaged.map((each) => h("p", {}, each))));
}

function problemOf(error) {
  return error.problem ?? { must: "The page must work", got: error.message, do: "Load it again." };
}

function titleOf(error) {
  if (error.problem?.write_committed) return "It was written, but the answer failed.";
  if (error.status === 0) return "The service cannot be reached.";
  if (error.status === 401) return "A key is needed.";
  if (error.status === 403) return "Your key does not allow this.";
  if (error.status === 404) return "Not found.";
  if (error.status === 429 || error.status === 503) return "The service is busy.";
  return "That did not work.";
}

function sentence(must, got) {
  return got ? `${must}; ${got}.` : /[.!?]$/.test(must) ? must : `${must}.`;
}
