// The page: cameras as cards, the daemon's state above them.

import { Announcer } from "./announcer.js";
import { get, post, source as addressOf } from "./api.js";
import { Card } from "./card.js";
import { Connection } from "./connection.js";
import { $, open, put, remember, remembered, show } from "./dom.js";
import { Header } from "./header.js";
import { Viewer } from "./history.js";
import { Keys } from "./keys.js";
import { Source } from "./model.js";
import { PromptEditor } from "./prompts.js";
import { toast } from "./toasts.js";

const TICK_MS = 250;

class App {
  constructor() {
    this.cards = new Map(); // source name → card
    this.may = new Set();
    this.skewS = 0; // the daemon's clock less this machine's
    this.link = "connecting";
    this.soloName = null;
    this.drawing = false;
    this.dirty = new Set();
    this.grid = $("#cameras");
    this.header = new Header();
    this.announcer = new Announcer($("#spoken"));
    this.viewer = new Viewer($("#viewer"));
    this.editor = new PromptEditor($("#prompts"), () => this.connection.refresh());
    this.does = {
      pause: (source) => this.#pause(source),
      edit: (source) => this.editor.open(source),
      solo: (source) => this.#solo(source.name),
      view: (source, key) => this.viewer.open(source, key),
    };
    this.seen = new IntersectionObserver((entries) => this.#scrolled(entries));
    this.connection = new Connection({
      state: (state) => this.#state(state),
      event: (event) => this.#event(event),
      missed: () => this.#cutOff(),
      link: (words, waitMs) => this.#link(words, waitMs),
    });
    this.#wire();
    document.addEventListener("visibilitychange", () => this.#pictures());
    setInterval(() => this.#tick(), TICK_MS);
    this.connection.start();
  }

  #wire() {
    $("#retry").addEventListener("click", () => this.connection.retry());
    $("#theme").addEventListener("click", () => this.#theme());
    $("#help-open").addEventListener("click", () => open($("#help")));
    $("#help .close").addEventListener("click", () => $("#help").close());
    $("#logout").addEventListener("click", () => post("api/logout").then(() => location.reload(), (e) => toast("error", e.message)));
    $("#login form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#login();
    });
    // Without a key there is nothing to go back to; a browser lets the second Escape through.
    $("#login").addEventListener("cancel", (event) => event.preventDefault());
    $("#login").addEventListener("close", () => this.link === "login" && open($("#login")));
    this.keys = new Keys(
      [
        ["j", "Next camera", () => this.#step(1)],
        ["k", "Previous camera", () => this.#step(-1)],
        ["p", "Pause or resume captions of the camera", () => this.#controlled((card) => this.#pause(card.source))],
        ["e", "Edit its prompts", () => this.#controlled((card) => this.editor.open(card.source))],
        ["v", "Live picture or captioned frame", () => this.#chosen((card) => card.show(card.view === "live" ? "captioned" : "live"))],
        ["h", "Its history (arrows to move, Enter to look)", () => this.#chosen((card) => card.history.focus())],
        ["f", "Fill the page with the camera", () => this.#chosen((card) => this.#solo(card.source.name))],
        ["t", "Light or dark", () => this.#theme()],
        ["?", "This help", () => open($("#help"))],
      ],
      $("#keys"),
    );
    for (const [id, part] of [["#keys-on", this.keys], ["#speak-on", this.announcer]]) {
      $(id).checked = part.on;
      $(id).addEventListener("change", (event) => part.set(event.target.checked));
    }
    this.#themeLabel();
  }

  #theme() {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember("theme", theme);
    this.#themeLabel();
  }

  #themeLabel() {
    const dark = document.documentElement.dataset.theme === "dark";
    $("#theme").setAttribute("aria-label", dark ? "Use the light theme" : "Use the dark theme");
  }

  // ---- what the daemon says

  #state(state) {
    const nowMs = performance.now();
    this.skewS = state.now_unix - Date.now() / 1000;
    this.may = new Set(state.may ?? []);
    if (this.link === "login") this.link = "connecting";
    if ($("#login").open) $("#login").close();
    const names = new Set(state.sources.map((facts) => facts.name));
    for (const [name, card] of this.cards) if (!names.has(name)) this.#remove(name, card);
    state.sources.forEach((facts, i) => {
      const card = this.cards.get(facts.name) ?? this.#add(facts.name);
      if (this.grid.children[i] !== card.element) this.grid.insertBefore(card.element, this.grid.children[i] ?? null);
      card.source.sync(facts, nowMs);
      card.drawFacts(this.may.has("control"));
    });
    this.#arrange();
    this.header.state(state);
    this.#pictures();
    this.#draw();
  }

  #event(event) {
    if (event.type === "engine") this.header.engine(event);
    if (event.type === "notice") toast(event.level, `${event.about}: ${event.message}`);
    const card = this.cards.get(event.source ?? event.frame?.source);
    if (!card) return;
    card.source.apply(event, performance.now());
    if (event.type === "source" || event.type === "rule") {
      card.drawFacts(this.may.has("control"));
      this.header.rules([...this.cards.values()]);
      this.#pictures();
    }
    if (event.type === "caption") this.announcer.caption(event.frame.source, event.text);
    this.dirty.add(card);
    this.#draw();
  }

  #link(words, waitMs) {
    this.link = words;
    document.body.dataset.connection = words;
    this.header.link(words, waitMs);
    if (words === "open") for (const card of this.cards.values()) this.#history(card);
    if (words === "lost") this.#cutOff();
    if (words === "login") {
      $("#login .error").textContent = "";
      open($("#login"));
    }
    this.#pictures();
  }

  #cutOff() {
    for (const card of this.cards.values()) card.source.cutOff();
  }

  async #history(card) {
    try {
      card.source.history((await get(`${addressOf(card.source.name)}/history`)).captions);
    } catch (error) {
      toast("warning", `History of ${card.source.name}: ${error.message}`);
    }
  }

  // ---- cards

  #add(name) {
    const card = new Card(new Source(name), this.does);
    card.show(remembered(`view.${name}`) === "captioned" ? "captioned" : "live");
    this.cards.set(name, card);
    this.seen.observe(card.element);
    if (this.link === "open") this.#history(card);
    return card;
  }

  #remove(name, card) {
    this.seen.unobserve(card.element);
    card.close();
    this.cards.delete(name);
    this.dirty.delete(card);
    this.announcer.forget(name);
    if (this.soloName === name) this.soloName = null;
  }

  #arrange() {
    const only = this.cards.size === 1 || this.cards.has(this.soloName);
    this.grid.dataset.layout = only ? "single" : "grid";
    for (const [name, card] of this.cards) {
      show(card.element, !this.cards.has(this.soloName) || name === this.soloName);
      const button = $(".solo", card.element);
      show(button, this.cards.size > 1);
      button.setAttribute("aria-pressed", String(name === this.soloName));
      put(button, name === this.soloName ? "All cameras" : "Fill");
    }
    this.header.nothing(this.cards.size === 0);
  }

  #solo(name) {
    this.soloName = this.soloName === name || this.cards.size < 2 ? null : name;
    this.#arrange();
    this.cards.get(name).element.focus();
  }

  #scrolled(entries) {
    for (const entry of entries) {
      for (const card of this.cards.values()) if (card.element === entry.target) card.inView = entry.isIntersecting;
    }
    this.#pictures();
  }

  // Live pictures are fetched for those who look at them.
  #pictures() {
    const wanted = (card) => !document.hidden && this.link === "open" && card.inView && !card.element.hidden && card.hasFrames && card.view === "live";
    const cards = [...this.cards.values()];
    const cameras = cards.filter(wanted).length;
    for (const card of cards) card.picture.run(wanted(card), cameras);
  }

  // ---- drawing

  #draw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame((nowMs) => {
      this.drawing = false;
      for (const card of this.dirty) card.drawCaption(nowMs);
      this.dirty.clear();
    });
  }

  #tick() {
    if (document.hidden) return;
    const nowMs = performance.now();
    for (const card of this.cards.values()) card.tick(nowMs, this.skewS, this.link !== "open");
    this.#pictures();
    this.announcer.tick(nowMs);
    this.header.tick(nowMs);
  }

  // ---- what a person does

  #chosen(act) {
    const shown = [...this.cards.values()].filter((card) => !card.element.hidden);
    const card = shown.find((one) => one.element.contains(document.activeElement)) ?? shown[0];
    if (card) act(card);
  }

  #controlled(act) {
    if (this.may.has("control")) this.#chosen(act);
  }

  #step(by) {
    const shown = [...this.cards.values()].map((card) => card.element).filter((element) => !element.hidden);
    const place = shown.findIndex((element) => element.contains(document.activeElement));
    shown[place < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, place + by))]?.focus();
  }

  async #pause(source) {
    const verb = source.facts.paused ? "resume" : "pause";
    try {
      await post(`${addressOf(source.name)}/${verb}`);
      await this.connection.refresh();
    } catch (error) {
      toast("error", `${source.name}: ${error.message}`);
    }
  }

  async #login() {
    const error = $("#login .error");
    put(error, "");
    try {
      await post("api/login", { key: $("#login-key").value });
      $("#login-key").value = "";
      this.header.loggedIn();
      this.connection.start();
    } catch (problem) {
      put(error, problem.message);
    }
  }
}

new App();
