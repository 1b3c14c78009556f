// One camera: its picture, the caption as it is written, its state, rules, figures and history.

import { $, clone, make, put, remember, show } from "./dom.js";
import { clock, count, decimal, milliseconds, seconds, shown } from "./format.js";
import { HistoryList } from "./history.js";
import { LivePicture } from "./picture.js";
import { Presenter } from "./presenter.js";
import { Spark } from "./spark.js";

const SLOW_MS = 500; // history and sparklines are drawn this often at most

const STATES = {
  live: ["Live", "good", ""],
  paused: ["Live", "good", ""], // captions rest, frames go on
  connecting: ["Connecting", "wait", "Connecting to the camera"],
  no_signal: ["No signal", "bad", "No signal"],
  ended: ["Ended", "quiet", "The video has ended"],
};

export class Card {
  static #cards = 0; // names make no element ids

  // `does`: what the buttons do: pause(source), edit(source), solo(source), view(source, key)
  constructor(source, does) {
    this.source = source;
    this.element = clone("card-template");
    this.view = "live";
    this.inView = true;
    this.slowMs = 0;
    this.frame = { seq: NaN, atMs: NaN, ageMs: NaN };
    this.name = $("h2", this.element);
    this.pair = $(".pair", this.element);
    this.words = $(".caption", this.element);
    this.box = $(".caption-box", this.element);
    this.live = make("img", "frame");
    $(".frame-box", this.element).append(this.live);
    this.picture = new LivePicture(this.live, source.name, (seq, ageMs) => this.#framed(seq, ageMs), () => this.#framed(NaN, NaN));
    this.presenter = new Presenter(source.name, () => this.drawCaption(performance.now()));
    this.history = new HistoryList($(".history", this.element), source, does.view);
    this.speed = new Spark($(".speed", this.element), "Tokens per second", decimal);
    this.first = new Spark($(".first", this.element), "Time to the first token", milliseconds);
    this.#label();
    const on = (selector, act) => $(selector, this.element).addEventListener("click", act);
    on(".pause", () => does.pause(source));
    on(".edit", () => does.edit(source));
    on(".solo", () => does.solo(source));
    on(".view .live", () => this.show("live"));
    on(".view .captioned", () => this.show("captioned"));
  }

  #label() {
    const name = shown(this.source.name);
    const id = `camera-${Card.#cards++}`;
    put($("bdi", this.name), name);
    this.name.id = id;
    this.element.setAttribute("aria-labelledby", id);
    this.live.alt = `Newest frame of ${name}`;
    for (const selector of [".solo", ".edit", ".pause"]) $(selector, this.element).setAttribute("aria-describedby", id);
  }

  show(view) {
    this.view = view;
    remember(`view.${this.source.name}`, view);
    for (const name of ["live", "captioned"]) $(`.view .${name}`, this.element).setAttribute("aria-pressed", String(view === name));
    this.#place();
  }

  get hasFrames() {
    return ["live", "paused"].includes(this.source.facts.status);
  }

  // Called when facts have changed, and after every state.
  drawFacts(mayControl) {
    const { facts } = this.source;
    const [word, tone] = STATES[facts.status] ?? [shown(facts.status ?? "?"), "wait", ""];
    const paused = Boolean(facts.paused);
    const pill = $(".status", this.element);
    put($(".words", pill), paused ? `${word}, captions paused` : word);
    pill.dataset.tone = paused && tone === "good" ? "wait" : tone;
    put($(".uri", this.element), shown(facts.uri ?? ""));
    $(".uri", this.element).title = shown(facts.uri ?? "");
    put($(".pause", this.element), paused ? "Resume" : "Pause");
    $(".pause", this.element).setAttribute("aria-pressed", String(paused));
    for (const control of this.element.querySelectorAll(".control")) show(control, mayControl);
    this.element.dataset.status = facts.status;
    if (facts.width > 0 && facts.height > 0) this.element.style.setProperty("--shape", `${facts.width} / ${facts.height}`);
    if (!this.hasFrames) this.picture.clear();
    this.#place();
    this.#asked();
    this.#veil();
    this.#rules();
  }

  // The state of a source stands where its picture would be, in another form than any caption.
  #veil() {
    const { facts } = this.source;
    const veil = $(".veil", this.element);
    show(veil, !this.hasFrames);
    if (this.hasFrames) return;
    put($(".headline", veil), (STATES[facts.status] ?? ["", "", shown(facts.status)])[2]);
    const cause = facts.cause && facts.status !== "ended" ? ` (${facts.cause})` : "";
    put($(".detail", veil), facts.message ? shown(facts.message) + shown(cause) : shown(facts.cause ?? ""));
  }

  #rules() {
    const list = $(".rules", this.element);
    show(list, this.source.rules.size > 0);
    const chips = new Map([...list.children].map((chip) => [chip.dataset.rule, chip]));
    for (const [name, active] of this.source.rules) {
      const chip = chips.get(name) ?? list.appendChild(this.#chip(name));
      chips.delete(name);
      chip.dataset.active = String(active);
      put($(".state", chip), active ? "active" : "quiet");
    }
    for (const chip of chips.values()) chip.remove();
  }

  #chip(name) {
    const chip = make("li", "chip");
    chip.dataset.rule = name;
    const dot = make("span", "dot");
    dot.setAttribute("aria-hidden", "true");
    chip.append(dot, make("bdi", "", shown(name)), " ", make("span", "state"));
    return chip;
  }

  // Called in each animation frame in which something has happened.
  drawCaption(nowMs) {
    const { trouble } = this.source;
    show($(".trouble", this.element), trouble !== "");
    put($(".trouble", this.element), trouble && `The last caption failed. ${shown(trouble)}`);
    const image = this.presenter.image;
    if (this.presenter.step(this.source.newest, nowMs)) {
      this.box.scrollTop = 0;
      this.#asked();
    }
    const caption = this.presenter.caption;
    if (!caption) return;
    if (this.presenter.image !== image || this.placed !== this.presenter.image) this.#place();
    const atEnd = this.box.scrollTop + this.box.clientHeight >= this.box.scrollHeight - 8;
    const words = shown(caption.text);
    const structured = caption.done?.fields && Object.keys(caption.done.fields).length > 0 ? caption.done.fields : null;
    put(this.words, words);
    show(this.words, !structured);
    this.#fields(structured, caption);
    // Follow the text while it is written, unless somebody scrolls back.
    if (!caption.over && atEnd) this.box.scrollTop = this.box.scrollHeight;
    this.pair.dataset.writing = String(!caption.over);
    this.pair.dataset.caption = caption.id;
    this.pair.dataset.seq = caption.frame.seq;
  }

  #fields(fields, caption) {
    const list = $(".fields", this.element);
    show(list, fields !== null);
    if (!fields || list.dataset.of === caption.key) return;
    list.dataset.of = caption.key;
    const nodes = Object.entries(fields).flatMap(([name, value]) => [
      make("dt", "", shown(name)),
      make("dd", "", shown(value !== null && typeof value === "object" ? JSON.stringify(value) : value)),
    ]);
    nodes.forEach((node) => node.setAttribute("dir", "auto"));
    list.replaceChildren(...nodes);
  }

  // The question of the caption that is shown; before there is one, the question that will be asked first.
  #asked() {
    const { caption } = this.presenter;
    const prompts = this.source.facts.prompts ?? [];
    put($(".question", this.element), shown(caption ? caption.prompt : prompts[0]?.text));
    const place = caption ? prompts.findIndex((prompt) => prompt.id === caption.promptId) : -1;
    put($(".turn", this.element), prompts.length > 1 && place >= 0 ? `${place + 1} of ${prompts.length}` : "");
  }

  // The captioned frame is one picture: beside the text, or large in its stead.
  #place() {
    const { image } = this.presenter;
    this.placed = image;
    const large = this.view === "captioned" && this.hasFrames;
    this.element.dataset.view = large ? "captioned" : "live";
    const [home, other] = large ? [".frame-box", ".thumb-box"] : [".thumb-box", ".frame-box"];
    $(other, this.element).querySelector(".about")?.remove();
    const box = $(home, this.element);
    const before = box.querySelector(".about");
    if (image) {
      image.className = "about";
      image.alt = `Frame ${this.presenter.caption.frame.seq}, which the caption is about`;
    }
    if (before !== image) before?.remove();
    if (image && image.parentElement !== box) box.append(image);
  }

  // Four times a second: ages, waits and what is drawn slowly.
  tick(nowMs, skewS, offline) {
    const nowUnix = Date.now() / 1000 + skewS;
    this.drawCaption(nowMs);
    this.#stamp(nowMs);
    this.#facts(nowUnix, offline);
    const wait = (this.source.retryAtMs - nowMs) / 1000;
    const { facts } = this.source;
    const again = wait > 0 ? `Next attempt in ${seconds(wait)}` : facts.status === "ended" ? "" : "Trying now";
    put($(".next", this.element), !this.hasFrames ? `${again}${facts.attempt > 1 ? ` · attempt ${count(facts.attempt)}` : ""}` : "");
    if (nowMs - this.slowMs < SLOW_MS) return;
    this.slowMs = nowMs;
    this.history.draw();
    this.speed.draw(this.source.speeds);
    this.first.draw(this.source.firsts);
  }

  #framed(seq, ageMs) {
    // Without a word of its age it is as old as the one before: the daemon could not tell in time.
    this.frame = { seq, ageMs: Number.isFinite(ageMs) || !Number.isFinite(seq) ? ageMs : this.frame.ageMs, atMs: performance.now() };
  }

  #stamp(nowMs) {
    const { caption } = this.presenter;
    let words = "";
    if (this.view === "captioned") words = caption ? `Frame ${count(caption.frame.seq)} · captioned` : "No caption yet";
    else if (this.hasFrames) {
      const parts = [];
      if (Number.isFinite(this.frame.ageMs)) parts.push(`${seconds((this.frame.ageMs + nowMs - this.frame.atMs) / 1000)} old`);
      if (Number.isFinite(this.frame.seq)) parts.push(`frame ${count(this.frame.seq)}`);
      // On a phone there is no room for it.
      if (Number.isFinite(this.source.facts.fps) && this.element.clientWidth > 400) parts.push(`${decimal(this.source.facts.fps)} fps`);
      words = parts.join(" · ");
    }
    put($(".stamp", this.element), words);
  }

  #facts(nowUnix, offline) {
    const { caption } = this.presenter;
    if (!caption) {
      put($(".facts", this.element), this.hasFrames && !this.source.facts.paused ? "Waiting for the first caption" : "");
      return;
    }
    const age = nowUnix - caption.frame.capture_unix;
    const parts = [`Frame ${count(caption.frame.seq)}`, `${seconds(age)} ago`];
    if (caption.done) {
      parts.push(`first word after ${milliseconds(caption.done.age_first_ms ?? caption.done.ttft_ms)}`);
      parts.push(`${decimal(caption.done.tokens_per_s)} tokens/s`);
      if (caption.done.finish_reason === "length") parts.push("cut at its token limit");
    } else if (caption.over) parts.push("not finished");
    else parts.push("being written");
    // What is old looks old.
    const stale = offline || !this.hasFrames || Boolean(this.source.facts.paused);
    this.pair.dataset.stale = String(stale);
    put($(".facts", this.element), `${stale ? "Last caption · " : ""}${parts.join(" · ")}`);
    $(".facts", this.element).title = `Captured ${clock(caption.frame.capture_unix)}`;
  }

  close() {
    this.picture.clear();
    this.element.remove();
  }
}
