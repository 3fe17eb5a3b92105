/** Numbers and the words for what a gallery holds. */

const KINDS = {
  things: { one: "identity", many: "identities", above: "Same identity above", below: "unknown below", nobody: "Unknown", same: "Same identity", different: "Different identities" },
  people: { one: "person", many: "people", above: "Same person above", below: "unknown below", nobody: "Unknown person", same: "Same person", different: "Different people" },
  products: { one: "product", many: "products", above: "Same product above", below: "other products below", nobody: "No such product", same: "Same product", different: "Different products" },
};

/** What the gallery's identities are called; people choose it, and this browser remembers. */
export const kinds = Object.keys(KINDS);

export function kindOf(index) {
  const kind = localStorage.getItem(`dml-kind-${index}`);
  return kinds.includes(kind) ? kind : "things";
}

export function setKind(index, kind) {
  localStorage.setItem(`dml-kind-${index}`, kind);
}

/** @param {string} index its name */
export function wordsOf(index) {
  return KINDS[kindOf(index)];
}

const whole = new Intl.NumberFormat("en");

export function count(number) {
  return whole.format(number);
}

/** "1 item", "2 items". */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A cosine. */
export function cosine(value) {
  return value.toFixed(3).replace("-", "−");
}

export function percent(value) {
  return `${(100 * value).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
}

export function milliseconds(value) {
  return `${value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 })} ms`;
}

/** A time as of ISO 8601, in the reader's own form. */
export function time(value) {
  const date = new Date(value);
  return Number.isNaN(date.valueOf()) ? String(value) : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Attributes in one line: a number and a yes or no with their names, which mean nothing without. */
export function summary(attributes) {
  const said = Object.entries(attributes).map(([name, value]) => {
    if (value === true || value === false) return value ? name : `not ${name}`;
    return typeof value === "number" ? `${name} ${value}` : value;
  });
  return said.filter(Boolean).join(" · ");
}

/** An attribute's value. */
export function shown(value) {
  if (value === null || value === undefined) return "—";
  if (value === true) return "yes";
  if (value === false) return "no";
  return typeof value === "number" ? String(value) : value;
}
