// The list of past captions of a source, newest first, and the viewer that shows one of them large.

import { frameAddress } from "./api.js";
import { $, clone, make, open, put, show } from "./dom.js";
import { clock, dateAndClock, decimal, milliseconds, shown } from "./format.js";

export class HistoryList {
  constructor(section, source, view) {
    Object.assign(this, { section, source, view });
    this.list = $("ol", section);
    this.items = new Map(); // row key → list item
    this.version = -1;
    this.list.addEventListener("keydown", (event) => this.#move(event));
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest("li");
      if (item) this.view(this.source, item.dataset.key);
    });
  }

  draw() {
    if (this.version === this.source.historyVersion) return;
    this.version = this.source.historyVersion;
    const rows = this.source.rows;
    const keys = new Set(rows.map((row) => row.key));
    for (const [key, item] of this.items) if (!keys.has(key)) this.#drop(key, item);
    let place = this.list.firstElementChild;
    for (const row of rows) {
      const item = this.items.get(row.key) ?? this.#make(row);
      if (item === place) place = place.nextElementSibling;
      else this.list.insertBefore(item, place);
      this.#fill(item, row);
    }
    show($(".empty", this.section), rows.length === 0);
    // One stop for the Tab key; the arrows go from row to row.
    if (!$('[tabindex="0"]', this.list)) $("button", this.list)?.setAttribute("tabindex", "0");
  }

  focus() {
    $('[tabindex="0"]', this.list)?.focus();
  }

  #make(row) {
    const item = clone("row-template");
    item.dataset.key = row.key;
    this.items.set(row.key, item);
    put($(".text", item), shown(row.event.text) || "(empty)");
    if (row.event.picture !== false) $(".mini", item).append(picture(this.source.name, row.event, true));
    return item;
  }

  #fill(item, row) {
    const several = (this.source.facts.prompts ?? []).length > 1;
    const times = row.count > 1 ? ` · ${row.count} times` : "";
    put($(".when", item), `${clock(row.last.frame.capture_unix)}${times}${several ? ` · ${shown(row.event.prompt_id)}` : ""}`);
  }

  #drop(key, item) {
    if (item.contains(document.activeElement)) this.list.firstElementChild?.firstElementChild.focus();
    item.remove();
    this.items.delete(key);
  }

  #move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling", Home: "first", End: "last" }[event.key];
    const item = event.target.closest("li");
    if (!step || !item) return;
    event.preventDefault();
    const next = step === "first" ? this.list.firstElementChild : step === "last" ? this.list.lastElementChild : item[step];
    if (!next) return;
    for (const stop of this.list.querySelectorAll('[tabindex="0"]')) stop.setAttribute("tabindex", "-1");
    next.firstElementChild.setAttribute("tabindex", "0");
    next.firstElementChild.focus();
  }
}

// The captioned frame; where the daemon does not keep it any more, an empty box rather than another picture.
function picture(name, event, lazy) {
  const image = make("img");
  image.alt = "";
  image.decoding = "async";
  if (lazy) image.loading = "lazy";
  image.addEventListener("error", () => image.remove(), { once: true });
  image.src = frameAddress(name, event.caption, event.frame);
  return image;
}

export class Viewer {
  constructor(dialog) {
    this.dialog = dialog;
    this.source = null;
    this.row = null;
    $(".close", dialog).addEventListener("click", () => dialog.close());
    $(".newer", dialog).addEventListener("click", () => this.#step(-1));
    $(".older", dialog).addEventListener("click", () => this.#step(1));
    $(".copy", dialog).addEventListener("click", () => navigator.clipboard.writeText(this.row.event.text));
    show($(".copy", dialog), Boolean(navigator.clipboard)); // not there on plain HTTP from another machine
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#step(-1);
      if (event.key === "ArrowRight") this.#step(1);
    });
    dialog.addEventListener("close", () => $(".viewer-picture", dialog).replaceChildren());
  }

  open(source, key) {
    const row = source.rows.find((one) => one.key === key);
    if (!row) return;
    this.source = source;
    this.#draw(row);
    open(this.dialog);
  }

  #step(by) {
    const place = this.source.rows.findIndex((row) => row.key === this.row.key);
    const next = this.source.rows[Math.max(0, place) + by];
    if (next) this.#draw(next);
  }

  #draw(row) {
    this.row = row;
    const event = row.event;
    const image = picture(this.source.name, event, false);
    image.alt = `Frame ${event.frame.seq} of ${this.source.name}`;
    const box = $(".viewer-picture", this.dialog);
    image.addEventListener("error", () => box.replaceChildren(make("p", "hint", "The daemon does not keep this frame any more.")));
    box.replaceChildren(image);
    put($(".viewer-text", this.dialog), shown(event.text));
    const facts = [
      ["Camera", shown(this.source.name)],
      ["Captured", dateAndClock(event.frame.capture_unix)],
      ["Frame", `${event.frame.seq} (${event.frame.width} × ${event.frame.height})`],
      ["Prompt", shown(event.prompt)],
      ["Model", shown(event.model)],
      ["Age at first and last token", `${milliseconds(event.age_first_ms)}, ${milliseconds(event.age_last_ms)}`],
      ["Tokens", `${event.tokens} at ${decimal(event.tokens_per_s)}/s, ended by ${shown(event.finish_reason)}`],
    ];
    const pairs = facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
    pairs.forEach((node) => node.tagName === "DD" && node.setAttribute("dir", "auto"));
    $(".viewer-facts", this.dialog).replaceChildren(...pairs);
    const place = this.source.rows.indexOf(row);
    $(".newer", this.dialog).disabled = place === 0;
    $(".older", this.dialog).disabled = place === this.source.rows.length - 1;
  }
}
