/** A form of filters made from the columns of an index or dataset: their types, values and counts. */

import { button, h, newId } from "./dom.mjs";
import { count, cosine, shown } from "./words.mjs";

const FIRST_SHOWN = 6;
const NEVER = new Set(["id", "sha256"]);
const LAST = ["label", "split", "width", "height"]; // what every dataset has; attributes tell more

/**
 * @typedef {{name: string, type: "text"|"integer"|"number"|"boolean"|"time"|"location", missing: number,
 *   distinct: number, values: {value: string|number|boolean, count: number}[], low: number|string|null,
 *   high: number|string|null}} Column
 */

/**
 * @param {Column[]} columns
 * @param {(filter: (object|string)[]) => void} onChange called with the conditions, which must all hold
 * @returns {{element: HTMLElement, conditions: () => (object|string)[]}}
 */
export function filterForm(columns, onChange) {
  const order = (column) => LAST.indexOf(column.name);
  const asked = columns.filter((column) => !NEVER.has(column.name)).sort((one, other) => order(one) - order(other));
  const parts = asked.map((column) => PARTS[column.type]?.(column, changed)).filter(Boolean);
  const written = textPart(changed);
  const clear = button("Clear filters", () => {
    for (const each of [...parts, written]) each.clear();
    changed();
  });
  clear.hidden = true;
  const element = h("form", { class: "card padded stack", "aria-label": "Filters", on: { submit: (event) => event.preventDefault() } }, h("div", { class: "row apart" }, h("h2", {}, "Filters"), clear), parts.map((each) => each.element), written.element);
  let timer;

  function conditions() {
    return [...parts, written].map((each) => each.condition()).filter(Boolean);
  }

  function changed() {
    clear.hidden = !conditions().length;
    clearTimeout(timer);
    timer = setTimeout(() => onChange(conditions()), 250);
  }

  return { element, conditions };
}

const PARTS = { text: valuesPart, boolean: valuesPart, integer: rangePart, number: rangePart, time: timePart };

function group(column, ...content) {
  return h("div", { class: "filter" }, h("fieldset", {}, h("legend", {}, h("bdi", {}, column.name)), content));
}

function valuesPart(column, changed) {
  if (column.distinct > 1000 && column.values[0]?.count === 1) return otherPart(column, changed); // as good as ids
  const boxes = column.values.map(({ value }) => h("input", { type: "checkbox", on: { change: changed }, "data-value": JSON.stringify(value) }));
  const lines = column.values.map(({ value, count: number }, place) =>
    h("label", { class: "check", hidden: place >= FIRST_SHOWN }, boxes[place], h("bdi", { class: "name", title: value }, shown(value) || "(empty text)"), h("span", { class: "count" }, count(number))),
  );
  const absent = h("input", { type: "checkbox", on: { change: changed } });
  if (column.missing) lines.push(h("label", { class: "check", hidden: lines.length >= FIRST_SHOWN }, absent, h("span", { class: "name quiet" }, "no value"), h("span", { class: "count" }, count(column.missing))));
  const more = lines.length > FIRST_SHOWN && button(`Show all ${count(lines.length)}`, showAll, { kind: "bare" });
  const other = column.distinct > column.values.length && otherInput(column, changed);

  function showAll() {
    for (const line of lines) line.hidden = false;
    more.remove();
    boxes[FIRST_SHOWN]?.focus();
  }

  return {
    element: group(column, h("div", { class: "values" }, lines), more, other && other.label),
    condition() {
      const values = boxes.filter((box) => box.checked).map((box) => JSON.parse(box.dataset.value));
      if (other && other.input.value) values.push(other.input.value);
      const conditions = [];
      if (values.length === 1) conditions.push({ op: "compare", column: column.name, operator: "=", value: values[0] });
      if (values.length > 1) {
        conditions.push(column.type === "boolean" ? either(values.map((value) => ({ op: "compare", column: column.name, operator: "=", value }))) : { op: "in", column: column.name, values });
      }
      if (absent.checked) conditions.push({ op: "is_null", column: column.name });
      return either(conditions);
    },
    clear() {
      for (const box of [...boxes, absent]) box.checked = false;
      if (other) other.input.value = "";
    },
  };
}

function otherInput(column, changed) {
  const input = h("input", { class: "input", autocomplete: "off", on: { change: changed } });
  return { input, label: h("label", { class: "label" }, h("span", { class: "small quiet" }, `One of ${count(column.distinct)} values`), input) };
}

function otherPart(column, changed) {
  const { input, label } = otherInput(column, changed);
  return {
    element: group(column, label),
    condition: () => input.value && { op: "compare", column: column.name, operator: "=", value: input.value },
    clear: () => (input.value = ""),
  };
}

function rangePart(column, changed) {
  const [low, high] = [column.low, column.high];
  const step = column.type === "integer" ? "1" : "any";
  const from = h("input", { class: "input", type: "number", step, placeholder: low === null ? "" : tidy(low), "aria-label": `${column.name} from`, on: { change: changed } });
  const to = h("input", { class: "input", type: "number", step, placeholder: high === null ? "" : tidy(high), "aria-label": `${column.name} to`, on: { change: changed } });
  return rangeOf(column, from, to, (input) => (input.value === "" ? null : Number(input.value)));
}

function timePart(column, changed) {
  const from = h("input", { class: "input", type: "date", "aria-label": `${column.name} from`, on: { change: changed } });
  const to = h("input", { class: "input", type: "date", "aria-label": `${column.name} to`, on: { change: changed } });
  return rangeOf(column, from, to, (input) => input.value || null);
}

function rangeOf(column, from, to, valueOf) {
  return {
    element: group(column, h("div", { class: "range" }, from, h("span", { class: "quiet" }, "to"), to), column.missing > 0 && h("p", { class: "count" }, `${count(column.missing)} without a value`)),
    condition() {
      const low = valueOf(from);
      const high = valueOf(to);
      const conditions = [];
      if (low !== null) conditions.push({ op: "compare", column: column.name, operator: ">=", value: low });
      if (high !== null) conditions.push({ op: "compare", column: column.name, operator: "<=", value: high });
      return conditions.length > 1 ? { op: "and", filters: conditions } : conditions[0];
    },
    clear() {
      from.value = to.value = "";
    },
  };
}

function textPart(changed) {
  const id = newId("filter-text");
  const input = h("input", { class: "input code", id, placeholder: "region = 'east' and year > 2000", spellcheck: "false", autocomplete: "off", on: { change: changed } });
  const element = h("details", { class: "filter" }, h("summary", {}, "As text"), h("label", { class: "label", for: id }, h("span", { class: "small quiet" }, "A condition in the language of filters")), input);
  return { element, condition: () => input.value.trim(), clear: () => (input.value = "") };
}

function either(conditions) {
  return conditions.length > 1 ? { op: "or", filters: conditions } : conditions[0];
}

function tidy(number) {
  return Number.isInteger(number) ? String(number) : String(Number(cosine(number).replace("−", "-")));
}
