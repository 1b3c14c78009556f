// Single-key shortcuts. They can be switched off, and never act while somebody writes or a dialog is open.

import { make, remember, remembered } from "./dom.js";

export class Keys {
  // `acts`: [key, what it does, function]
  constructor(acts, table) {
    this.acts = new Map(acts.map(([key, , act]) => [key, act]));
    this.on = remembered("keys") !== "false";
    for (const [key, what] of acts) {
      const row = make("tr");
      const head = make("th");
      head.scope = "row";
      head.append(make("kbd", "", key));
      row.append(head, make("td", "", what));
      table.append(row);
    }
    document.addEventListener("keydown", (event) => this.#pressed(event));
  }

  set(on) {
    this.on = on;
    remember("keys", on);
  }

  #pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) return;
    // For a moment after it closes, the focus is still within a dialog.
    const field = event.target.closest("input, textarea, select");
    if (field && !field.closest("dialog")) return;
    const act = this.acts.get(event.key);
    if (!act || (!this.on && event.key !== "?")) return;
    event.preventDefault();
    act();
  }
}
