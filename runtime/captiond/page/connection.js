// Keeps the page in touch with the daemon: state, then events, then state again, for as long as the page is open.

import { ApiError, get } from "./api.js";

const TYPES = ["caption_started", "caption_delta", "caption", "caption_failed", "source", "engine", "rule", "notice"];
const POLL_MS = 4000;
const HIDDEN_POLL_MS = 30000;
// Browsers open six connections to a host; an event stream of each forgotten tab would use them up.
const REST_AFTER_MS = 60000;
const BACKOFF_MS = [500, 1000, 2000, 4000, 5000];

export class Connection {
  // `on`: state(value), event(value), missed(), link(words: "connecting" | "open" | "lost" | "login", waitMs)
  constructor(on) {
    this.on = on;
    this.stream = null;
    this.timer = 0;
    this.rest = 0;
    this.failures = 0;
    this.held = null; // events that came while a state was on its way
    this.round = 0; // answers to questions of an earlier round are not listened to
    document.addEventListener("visibilitychange", () => this.#visibility());
    addEventListener("online", () => this.retry());
  }

  start() {
    this.#stop();
    const round = this.round;
    if (this.failures === 0) this.on.link("connecting");
    this.#sync(round).then((fine) => {
      if (fine && round === this.round) this.#listen(round);
    });
  }

  retry() {
    if (this.stream?.readyState !== EventSource.OPEN) this.start();
  }

  // Ask for the state now, because something has just been changed.
  refresh() {
    return this.#sync(this.round);
  }

  #stop() {
    this.round += 1;
    this.stream?.close();
    this.stream = null;
    this.held = null;
    clearTimeout(this.timer);
    clearTimeout(this.rest);
  }

  #listen(round) {
    this.stream = new EventSource("events");
    this.stream.onopen = async () => {
      this.held = [];
      // What happened between the first state and the stream is in this one; events that overlap are told apart.
      const fine = await this.#sync(round);
      if (!fine || round !== this.round) return;
      const held = this.held ?? [];
      this.held = null;
      held.forEach((event) => this.on.event(event));
      this.failures = 0;
      this.on.link("open");
      this.#pollLater(round);
    };
    this.stream.onerror = () => this.#lost(round);
    // The daemon keeps only so much for a slow reader; the state has what was lost.
    this.stream.addEventListener("missed", () => {
      this.on.missed();
      this.#sync(round).then((fine) => fine && round === this.round && this.on.link("open"));
    });
    for (const type of TYPES) this.stream.addEventListener(type, (message) => this.#event(message));
  }

  #event(message) {
    const event = JSON.parse(message.data);
    if (this.held) this.held.push(event);
    else this.on.event(event);
  }

  async #sync(round) {
    try {
      const state = await get("api/state");
      if (round === this.round) this.on.state(state);
      return true;
    } catch (error) {
      if (round !== this.round) return false;
      if (error instanceof ApiError && error.status === 401) {
        this.#stop();
        this.on.link("login");
      } else {
        this.#lost(round);
      }
      return false;
    }
  }

  #pollLater(round) {
    clearTimeout(this.timer);
    const wait = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
    this.timer = setTimeout(async () => {
      if ((await this.#sync(round)) && round === this.round) this.#pollLater(round);
    }, wait);
  }

  #lost(round) {
    if (round !== this.round) return;
    this.#stop();
    const wait = BACKOFF_MS[Math.min(this.failures, BACKOFF_MS.length - 1)] * (0.8 + 0.4 * Math.random());
    this.failures += 1;
    this.on.link("lost", wait);
    this.timer = setTimeout(() => this.start(), wait);
  }

  #visibility() {
    clearTimeout(this.rest);
    if (!document.hidden) {
      if (this.stream === null && this.failures === 0) this.start();
      else this.retry();
    } else if (this.stream) {
      this.rest = setTimeout(() => {
        this.#stop();
        this.#pollLater(this.round);
      }, REST_AFTER_MS);
    }
  }
}
