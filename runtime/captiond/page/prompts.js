// The dialog in which prompts are added, changed, removed and put into their order.

import { $, clone, open, put, show } from "./dom.js";
import { post, source as addressOf } from "./api.js";
import { shown } from "./format.js";

export class PromptEditor {
  // `saved()` is called when the daemon has taken the change.
  constructor(dialog, saved) {
    Object.assign(this, { dialog, saved });
    this.list = $(".prompt-list", dialog);
    this.source = null;
    this.originals = new Map(); // list item → the prompt as it was, with the settings that are not shown here
    $(".add", dialog).addEventListener("click", () => $("textarea", this.#add({ text: "", kind: "text" })).focus());
    $(".cancel", dialog).addEventListener("click", () => dialog.close());
    $("form", dialog).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save();
    });
    this.list.addEventListener("click", (event) => this.#order(event));
    this.list.addEventListener("change", () => this.#number());
  }

  open(source) {
    this.source = source;
    this.originals.clear();
    this.list.replaceChildren();
    put($("h2 bdi", this.dialog), shown(source.name));
    put($(".error", this.dialog), "");
    for (const prompt of source.facts.prompts ?? []) this.#add(prompt);
    $(".cadence", this.dialog).value = source.facts.captions_per_s ?? 0;
    open(this.dialog);
  }

  #add(prompt) {
    const item = clone("prompt-template");
    this.originals.set(item, prompt);
    $(".text", item).value = prompt.text;
    $(".kind", item).value = prompt.kind ?? "text";
    $(".id", item).value = prompt.id ?? this.#freeName();
    $(".every", item).value = prompt.every_s ?? 0;
    $(".tokens", item).value = prompt.max_new_tokens ?? 96;
    $(".schema", item).value = prompt.schema ? JSON.stringify(prompt.schema, null, 2) : "";
    this.list.append(item);
    this.#number();
    return item;
  }

  #freeName() {
    const taken = new Set([...this.list.querySelectorAll(".id")].map((input) => input.value));
    let n = taken.size + 1;
    while (taken.has(`prompt-${n}`)) n += 1;
    return `prompt-${n}`;
  }

  #number() {
    const items = [...this.list.children];
    items.forEach((item, i) => {
      put($(".number", item), `${i + 1} of ${items.length}`);
      $(".up", item).disabled = i === 0;
      $(".down", item).disabled = i === items.length - 1;
      show($(".schema-line", item), $(".kind", item).value === "json");
    });
  }

  #order(event) {
    const button = event.target.closest("button");
    const item = event.target.closest("li");
    if (!button || !item) return;
    if (button.classList.contains("up")) item.previousElementSibling?.before(item);
    if (button.classList.contains("down")) item.nextElementSibling?.after(item);
    if (button.classList.contains("remove")) {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      this.originals.delete(item);
      (next ? $(".remove", next) : $(".add", this.dialog)).focus();
    }
    this.#number();
    // At the end of its way a button is disabled; the focus goes to its counterpart.
    if (button.disabled) $(button.classList.contains("up") ? ".down" : ".up", item).focus();
    else if (item.isConnected) button.focus();
  }

  #read(item) {
    const kind = $(".kind", item).value;
    const prompt = { ...this.originals.get(item), kind, text: $(".text", item).value, id: $(".id", item).value.trim() };
    prompt.every_s = Number($(".every", item).value);
    prompt.max_new_tokens = Number($(".tokens", item).value);
    delete prompt.schema;
    if (kind === "json") {
      try {
        prompt.schema = JSON.parse($(".schema", item).value);
      } catch (error) {
        $(".schema", item).focus();
        throw new Error(`The schema of ${prompt.id} is no JSON: ${error.message}`);
      }
    }
    // What is not set is left to the daemon's defaults.
    return Object.fromEntries(Object.entries(prompt).filter(([, value]) => value !== null && value !== undefined));
  }

  async #save() {
    const error = $(".error", this.dialog);
    const submit = $('[type="submit"]', this.dialog);
    put(error, "");
    submit.disabled = true;
    try {
      const prompts = [...this.list.children].map((item) => this.#read(item));
      const pace = Number($(".cadence", this.dialog).value);
      const address = addressOf(this.source.name);
      if (pace !== this.source.facts.captions_per_s) await post(`${address}/cadence`, { captions_per_s: pace });
      await post(`${address}/prompts`, { prompts });
      this.dialog.close();
      this.saved();
    } catch (problem) {
      put(error, shown(problem.message));
    } finally {
      submit.disabled = false;
    }
  }
}
