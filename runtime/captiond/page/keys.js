// Single-key shortcuts. They can be switched off, and never act while a dialog is open: all fields are in dialogs.

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
    const act = this.acts.get(event.key);
    if (!act || (!this.on && event.key !== "?")) return;
    event.preventDefault();
    act();
  }
}
