/** Elements from names, properties and children. Text is always set as text: nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 *
 * @param {string} tag
 * @param {Object<string, unknown>} [properties] `class`, `on` (event to listener), `style` (custom property to
 *   value), properties of the element such as `value` and `checked`, and attributes.
 * @param {...(Node|string|number|null|undefined|false|Array)} children
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [property, part] of Object.entries(value)) element.style.setProperty(property, part);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** An icon of index.html's sprite; it says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A user's text, kept apart from the direction of the text around it. */
export function text(value, properties = {}) {
  return h("bdi", { title: value, ...properties }, String(value));
}

/** Replaces what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean).map(asNode));
  return element;
}

/** A button. */
export function button(label, onClick, { kind = "", iconName, ...properties } = {}) {
  const shown = [iconName && icon(iconName), label];
  return h("button", { type: "button", class: `button ${kind}`, on: { click: onClick }, ...properties }, shown);
}

const wide = matchMedia("(width >= 62rem)");

/** What stands at the side on a wide screen, and folds away under a heading on a narrow one. */
export function fold(heading, ...children) {
  const element = h("details", { class: "fold" }, h("summary", {}, heading), h("div", { class: "side" }, children));
  element.open = wide.matches;
  wide.addEventListener("change", () => (element.open = wide.matches));
  return element;
}

let lastId = 0;

/** An id for `for` and `aria-labelledby`, unique on the page. */
export function newId(stem) {
  lastId += 1;
  return `${stem}-${lastId}`;
}
