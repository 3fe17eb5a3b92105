/** Light or dark: as the system says, until somebody chooses. */

import { fill, icon } from "./dom.mjs";

const CHOICE = "dml-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** The button that changes it. */
export function startTheme(toggle) {
  show(localStorage.getItem(CHOICE));
  toggle.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    localStorage.setItem(CHOICE, next);
    show(next);
  });
  system.addEventListener("change", () => label());

  function show(choice) {
    if (choice) document.documentElement.dataset.theme = choice;
    label();
  }

  function label() {
    toggle.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
    toggle.title = toggle.getAttribute("aria-label");
    fill(toggle, icon(isDark() ? "sun" : "moon"));
  }
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
}
